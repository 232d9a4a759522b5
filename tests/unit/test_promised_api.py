"""What docs/third-party-fixes.md promises to the authors of fixes."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import torch_forwardfix
from torch_forwardfix import catalog, fix, patching

FIX = {
    "id": "str",
    "title": "str",
    "kind": "Kind",
    "upstream": "tuple[str, ...]",
    "affects": "Mapping[str, str]",
    "fixed_in": "str | None",
    "reproduce": "Callable[[], None]",
    "targets": "tuple[str, ...]",
    "changes_codegen": "bool",
    "is_present": "Callable[[ModuleType], bool | str]",
    "apply": "Callable[[ModuleType], None]",
}
OUTCOME = {"state": "State", "reason": "str", "module": "str | None", "duration": "float"}
STATES = {
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


@pytest.mark.parametrize(("name", "promised"), [("Fix", FIX), ("Outcome", OUTCOME)])
def test_promised_fields_are_there_and_new_ones_have_a_default(name, promised) -> None:
    fields = {field.name: field for field in dataclasses.fields(getattr(torch_forwardfix, name))}
    assert {name: fields[name].type for name in promised} == promised
    for added in fields.keys() - promised:
        assert fields[added].default is not dataclasses.MISSING, f"{name}.{added} breaks every plug-in"


def test_promised_states_kinds_and_exceptions_are_there() -> None:
    assert set(fix.STATES) >= STATES
    assert set(fix.KINDS) >= {"wrong-result", "crash", "cache", "startup", "config"}
    assert issubclass(torch_forwardfix.BugPresent, Exception)
    assert issubclass(patching.Drifted, Exception)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wrap", ["owner", "name", "make"]),
        ("replace", ["owner", "name", "value"]),
        ("lookup", ["module", "qualname"]),
        ("code_objects", ["function"]),
    ],
)
def test_promised_functions_take_what_they_took(name, parameters) -> None:
    found = inspect.signature(getattr(patching, name)).parameters.values()
    assert [parameter.name for parameter in found][: len(parameters)] == parameters
    assert all(parameter.default is not parameter.empty for parameter in list(found)[len(parameters) :])


def test_entry_points_keep_their_group() -> None:
    assert catalog.ENTRY_POINTS == "torch_forwardfix.fixes"
