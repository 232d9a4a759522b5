"""``nox --session drift``: what its answers say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])
sys.path.insert(0, TESTS)

import drift  # noqa: E402

sys.path.remove(TESTS)


def made(target="a", probe=True, in_range=True):
    return {"targets": {"torch._dynamo:f": target}, "probes": {"torch._dynamo": probe}, "in_range": in_range}


@pytest.mark.parametrize(
    ("new", "verdict", "code", "todo"),
    [
        (made(), "present", "as before", "needed, as it is"),
        (made("b"), "present", "changed: `torch._dynamo:f`", "needed; look whether the patch fits"),
        (made(None, "f is gone"), "present", "gone: `torch._dynamo:f`", "**needed, but not applied**: f is gone"),
        (made(None), "present", "gone: `torch._dynamo:f`", "**needed, but not applied**: its target is gone"),
        (made(in_range=False), "present", "as before", "**needed, but out of range**: look whether the patch fits"),
        (made("b", False), "absent", "changed: `torch._dynamo:f`", "can retire: end its range before this release"),
        (made("b", False, False), "absent", "changed: `torch._dynamo:f`", "not needed"),
        (made(), "error", "as before", "its reproduction fails: look at it"),
    ],
)
def test_what_is_to_be_done(new, verdict, code, todo):
    assert drift.answer(made(), new, verdict) == (code, todo)


def test_the_page_has_a_row_for_each_fix_that_one_of_the_releases_is_in_the_range_of():
    old = {"torch": "2.15.0+cu132", "fixes": {"kept": made(), "ended": made(), "over": made(in_range=False)}}
    fixes = {"kept": made(), "ended": made("b", False, False), "over": made(in_range=False)}
    runs = {"kept": {"verdict": "present"}, "ended": {"verdict": "absent"}}
    text = drift.page(old, {"torch": "2.16.0", "fixes": fixes, "runs": runs})
    assert "What torch 2.16.0 changed for the fixes that 2.15.0 or 2.16.0 is in the range of" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")] == ["| `kept`", "| `ended`"]
