"""docs/compatibility.md says what tests/trust.json says, and that is about exactly the tests that are marked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import compatibility_page as compatibility  # noqa: E402

sys.path.remove(str(TESTS))

RESULTS = json.loads(compatibility.RESULTS.read_text("utf-8"))


def row(python, outcome, reason="", section="Imports", text="a zipped module"):
    return {"section": section, "text": text, "python": python, "outcome": outcome, "reason": reason}


def test_page_is_made_from_the_results():
    assert compatibility.PAGE.read_text("utf-8") == compatibility.page(RESULTS)


def test_results_are_about_the_tests_that_are_marked(tmp_path):
    file = tmp_path / "rows.json"
    options = ("-m", "row", "--collect-only", "-q", "-p", "no:cacheprovider", f"--rows={file}")
    marked = set()
    # Folders that have their own conftest for all to import are collected apart.
    for folders in ("unit", "install", "neighbours"), ("fixes/test_faults.py",), ("vllm/test_double_patch.py",):
        command = (sys.executable, "-m", "pytest", *options, *(f"tests/{folder}" for folder in folders))
        subprocess.run(command, cwd=TESTS.parent, check=True, stdout=subprocess.DEVNULL)
        marked |= {(row["section"], row["text"]) for row in json.loads(file.read_text("utf-8"))}
    assert {(row["section"], row["text"]) for row in RESULTS["rows"]} == marked


def test_nothing_fails_and_what_was_not_tested_has_a_reason():
    for row in RESULTS["rows"]:
        assert set(row["outcomes"]) == {python for python, full in RESULTS["pythons"].items() if full}, row["text"]
        assert {outcome for outcome in row["outcomes"].values() if not outcome.startswith("skipped: ")} <= {"passed"}


def test_rows_of_all_pythons_are_merged_and_printed():
    runs = {
        "3.10": [row("3.10", "passed"), row("3.10", "failed", text="reload", section="Reload")],
        "3.11": [
            row("3.11", "skipped", "hangs by itself: python/cpython#1"),
            row("3.11", "passed", text="a frozen one"),
        ],
    }
    results = compatibility.merge(runs, {"3.10": "3.10.13", "3.11": "3.11.7", "3.12": None})
    assert json.loads(compatibility.dump(results)) == results
    head, *sections = compatibility.page(results).split("## ")
    assert head.endswith("Tested on CPython 3.10.13, 3.11.7. Not tested, as there was none to be had: 3.12.\n\n")
    assert sections == [
        "Imports\n\n| | 3.10 | 3.11 | 3.12 |\n|---|:-:|:-:|:-:|\n"
        "| a zipped module | ✓ | — <sup>1</sup> | — |\n| a frozen one | — | ✓ | — |\n\n",
        "Reload\n\n| | 3.10 | 3.11 | 3.12 |\n|---|:-:|:-:|:-:|\n| reload | ✗ | — | — |\n\n",
        "Notes\n\n1. hangs by itself: python/cpython#1\n",
    ]


def test_what_was_run_on_one_python_says_so_for_the_others():
    pythons = {"3.10": "3.10.13", "3.11": "3.11.7", "3.12": None}
    runs = {
        "torch 2.11.0": [row("3.11", "passed", section="Faults")],
        "vllm 0.19.0": [row("3.11", "skipped", "nothing to see", section="vLLM")],
        "vllm 0.20.0": [row("3.11", "passed", section="vLLM")],
    }
    rows = compatibility.merge(runs, pythons)["rows"]
    assert [each["outcomes"] for each in rows] == [
        {"3.10": f"skipped: {compatibility.ONE_PYTHON}", "3.11": "passed"}
    ] * 2


def test_sections_that_were_not_run_again_stay_where_they_are():
    pythons = {"3.10": "3.10.13"}
    old = compatibility.merge({"3.10": [row("3.10", "passed", section=name) for name in "ABC"]}, pythons)
    new = compatibility.merge({"3.10": [row("3.10", "failed", section=name, text="new") for name in "DB"]}, pythons)
    rows = compatibility.update(old, new)["rows"]
    assert [(row["section"], row["text"]) for row in rows] == [
        ("A", "a zipped module"),
        ("B", "new"),
        ("C", "a zipped module"),
        ("D", "new"),
    ]


def test_option_writes_the_worst_outcome_of_each_row(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text("utf-8"))
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.row('Modules', '{home} module')\n"
        "@pytest.mark.parametrize(('home', 'good'), [('zipped', True), ('zipped', False), ('frozen', True)])\n"
        "def test_home(home, good): assert good\n"
        "@pytest.mark.row('Starts', 'in C locale')\n"
        "def test_skipped(): pytest.skip('no locale here')\n"
        "def test_not_marked(): pass\n"
    )
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rows=rows.json")
    subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert json.loads((tmp_path / "rows.json").read_text("utf-8")) == [
        row(python, "failed", section="Modules", text="zipped module"),
        row(python, "passed", section="Modules", text="frozen module"),
        row(python, "skipped", "no locale here", section="Starts", text="in C locale"),
    ]
