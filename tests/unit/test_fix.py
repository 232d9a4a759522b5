from __future__ import annotations

import dataclasses
import pkgutil
from importlib import import_module
from typing import Any

import pytest

import torch_forwardfix.fixes
import torch_forwardfix.unfixed
from torch_forwardfix import Fix, catalog, gates
from torch_forwardfix.fix import KINDS, STATES, Bug, Unfixed

FIELDS: dict[str, Any] = {
    "id": "some-fix",
    "title": "something breaks",
    "kind": "crash",
    "upstream": ("pytorch/pytorch#1",),
    "affects": {"torch": ">=2.9.dev0"},
    "fixed_in": None,
    "targets": ("torch._dynamo:f",),
    "changes_codegen": False,
    "is_present": lambda module: True,
    "apply": lambda module: None,
    "reproduce": lambda: None,
}
FILES = [file.name for file in pkgutil.iter_modules(torch_forwardfix.fixes.__path__)]
UNFIXED_FILES = [file.name for file in pkgutil.iter_modules(torch_forwardfix.unfixed.__path__)]


def test_fix_with_sound_fields_is_taken() -> None:
    assert Fix(**FIELDS).id == "some-fix"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "Some-Fix"),
        ("id", "some_fix"),
        ("id", "some--fix"),
        ("id", "-some"),
        ("id", "some-fix\n"),
        ("id", "some,fix"),
        ("kind", "bug"),
        ("kind", ""),
        ("upstream", ("pytorch#1",)),
        ("upstream", ("pytorch/pytorch",)),
        ("upstream", ("pytorch/pytorch#1", "https://example.org/1")),
        ("upstream", "pytorch/pytorch#1"),
        ("targets", ()),
        ("targets", ("torch._dynamo",)),
        ("targets", ("torch._dynamo:",)),
        ("targets", (":f",)),
        ("targets", ("torch._dynamo:f()",)),
        ("affects", {}),
        ("affects", {"torch": "<2.12"}),
    ],
)
def test_malformed_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Fix\.{field}"):
        Fix(**{**FIELDS, field: value})


@pytest.mark.parametrize(
    ("field", "value", "shown"), [("id", "A b", "'A b'"), ("kind", "bug", "'bug'"), ("targets", ("x",), "'x'")]
)
def test_malformed_value_is_shown(field: str, value: object, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        Fix(**{**FIELDS, field: value})


def test_modules_are_those_of_the_targets_each_once_in_order() -> None:
    fix = Fix(**{**FIELDS, "targets": ("b.c:f", "a:f", "b.c:K.g")})
    assert fix.modules == ("b.c", "a")


def test_fix_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fix(**FIELDS).id = "other"  # type: ignore[misc]


def test_states_are_those_of_the_design() -> None:
    assert set(STATES) == {
        "applied",
        "waiting",
        "not-affected",
        "already-fixed",
        "disabled",
        "drifted",
        "foreign",
        "missed",
        "failed",
        "superseded",
    }
    assert len(STATES) == 10


def test_every_file_is_a_fix_of_the_catalog() -> None:
    known = catalog.load()
    assert {name.replace("_", "-") for name in FILES} <= set(known.fixes)
    assert known.broken == {}


def test_every_other_file_is_a_bug_that_stays() -> None:
    known = catalog.unfixed()
    assert {name.replace("_", "-") for name in UNFIXED_FILES} == set(known)
    assert not set(known) & set(catalog.load().fixes)


@pytest.mark.parametrize("file", UNFIXED_FILES)
def test_bug_that_stays_comes_with_reason_and_workaround(file: str) -> None:
    bug = bug_of(file)
    assert isinstance(bug, Unfixed)
    assert bug.why
    assert bug.workaround


@pytest.mark.parametrize("file", [*FILES, *UNFIXED_FILES])
class TestStory:
    def test_id_is_the_file_name(self, file: str) -> None:
        assert bug_of(file).id == file.replace("_", "-")

    def test_story_is_told(self, file: str) -> None:
        story = import_module(bug_of(file).reproduce.__module__).__doc__
        assert story is not None
        assert len(story.splitlines()) > 5

    def test_title_and_kind_and_upstream_are_there(self, file: str) -> None:
        bug = bug_of(file)
        assert bug.title
        assert bug.kind in KINDS
        assert bug.upstream

    def test_release_that_fixed_it_is_out_of_range(self, file: str) -> None:
        bug = bug_of(file)
        if bug.fixed_in is not None:
            assert not gates.in_range(bug.fixed_in, next(iter(bug.affects.values())))


@pytest.mark.parametrize("file", FILES)
class TestBuiltIn:
    def test_targets_lie_in_an_affected_package(self, file: str) -> None:
        fix = fix_of(file)
        assert {module.partition(".")[0] for module in fix.modules} <= set(fix.affects)


def bug_of(file: str) -> Bug:
    if file in FILES:
        return fix_of(file)
    return import_module(f"torch_forwardfix.unfixed.{file}").BUG


def fix_of(file: str) -> Fix:
    return import_module(f"torch_forwardfix.fixes.{file}").FIX
