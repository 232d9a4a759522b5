from __future__ import annotations

import pytest

from torch_forwardfix import settings

IDS = ("aot-builtins", "compile-disable", "third-one")


@pytest.mark.parametrize(
    ("value", "enabled"),
    [
        ("0", False),
        ("off", False),
        ("false", False),
        ("no", False),
        ("False", False),
        ("NO", False),
        (" 0 ", False),
        ("", True),
        ("1", True),
        ("on", True),
        ("TRUE", True),
        ("yes", True),
    ],
)
def test_switch_takes_the_usual_words(value: str, enabled: bool) -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX": value})
    assert read.enabled is enabled
    assert set(read.disabled) == (set() if enabled else set(IDS))
    assert read.problems == ()


@pytest.mark.parametrize(
    ("value", "strict"),
    [
        *((word, True) for word in ("1", "on", "True", " yes ")),
        *((word, False) for word in ("", "0", "off", "NO")),
    ],
)
def test_strict_takes_the_usual_words(value: str, strict: bool) -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX_STRICT": value})
    assert read.strict is strict
    assert read.problems == ()


def test_nothing_set_means_enabled_and_not_strict() -> None:
    assert settings.read(IDS, {}) == settings.Settings(True, False, {}, ())


@pytest.mark.parametrize("name", ["TORCH_FORWARDFIX", "TORCH_FORWARDFIX_STRICT"])
@pytest.mark.parametrize("value", ["2", "disable", "aot-builtins", "0;1"])
def test_unknown_value_is_reported_and_changes_nothing(name: str, value: str) -> None:
    read = settings.read(IDS, {name: value})
    assert (read.enabled, read.strict, read.disabled) == (True, False, {})
    assert len(read.problems) == 1
    assert f"{name}={value}" in read.problems[0]


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        ("", set()),
        (" , ,", set()),
        ("aot-builtins", {"aot-builtins"}),
        (" aot-builtins , third-one ", {"aot-builtins", "third-one"}),
        (",aot-builtins,,aot-builtins,", {"aot-builtins"}),
        (",".join(IDS), set(IDS)),
    ],
)
def test_disable_takes_a_list_of_ids(value: str, disabled: set[str]) -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX_DISABLE": value})
    assert set(read.disabled) == disabled
    assert all("TORCH_FORWARDFIX_DISABLE" in reason for reason in read.disabled.values())
    assert (read.enabled, read.problems) == (True, ())


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        ("", set()),
        (" , ", set()),
        ("aot-builtins", {"compile-disable", "third-one"}),
        (" aot-builtins ,third-one,", {"compile-disable"}),
        (",".join(IDS), set()),
    ],
)
def test_only_disables_the_others(value: str, disabled: set[str]) -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX_ONLY": value})
    assert set(read.disabled) == disabled
    assert all("TORCH_FORWARDFIX_ONLY" in reason for reason in read.disabled.values())
    assert (read.enabled, read.problems) == (True, ())


@pytest.mark.parametrize("name", ["TORCH_FORWARDFIX_DISABLE", "TORCH_FORWARDFIX_ONLY"])
@pytest.mark.parametrize("value", ["nonsense", "aot_builtins", "AOT-BUILTINS", "aot-builtins;third-one"])
def test_unknown_id_is_reported_by_name_and_changes_nothing(name: str, value: str) -> None:
    read = settings.read(IDS, {name: value})
    assert (read.enabled, read.strict, read.disabled) == (True, False, {})
    assert len(read.problems) == 1
    assert name in read.problems[0]
    assert repr(value) in read.problems[0]


def test_unknown_id_beside_a_known_one_leaves_that_one_its_effect() -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX_DISABLE": "nonsense,third-one"})
    assert set(read.disabled) == {"third-one"}
    assert len(read.problems) == 1
    read = settings.read(IDS, {"TORCH_FORWARDFIX_ONLY": "nonsense,third-one"})
    assert set(read.disabled) == {"aot-builtins", "compile-disable"}
    assert len(read.problems) == 1


def test_disable_and_only_add_up() -> None:
    both = {"TORCH_FORWARDFIX_DISABLE": "aot-builtins", "TORCH_FORWARDFIX_ONLY": "aot-builtins,third-one"}
    assert set(settings.read(IDS, both).disabled) == {"aot-builtins", "compile-disable"}


def test_switch_outdoes_the_lists() -> None:
    read = settings.read(IDS, {"TORCH_FORWARDFIX": "0", "TORCH_FORWARDFIX_ONLY": "third-one"})
    assert set(read.disabled.values()) == {"TORCH_FORWARDFIX=0"}


@pytest.mark.parametrize(
    ("id", "said"),
    [("aot-builtin", "did you mean 'aot-builtins'?"), ("xyz", "known: aot-builtins, compile-disable, third-one")],
)
def test_unknown_id_comes_with_a_hint(id: str, said: str) -> None:
    assert said in settings.unknown_id(id, IDS)
    assert repr(id) in settings.unknown_id(id, IDS)
