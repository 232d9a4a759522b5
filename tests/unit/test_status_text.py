"""``status`` for people: groups, order, colours, and the sentence at the end; ``--upgrade``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from test_cli import library

from torch_forwardfix import catalog, status_text
from torch_forwardfix.fix import KINDS

ARMED = """
import sys, torch_forwardfix
torch_forwardfix.init()
from torch_forwardfix.cli import main
raise SystemExit(main({}))
"""
OPEN_HEADING = "applied when torch's compiler loads: "
KIND_HEADINGS = ["wrong results", "crashes", "caches", "time to compile", "configuration"]


def status(sandbox, *arguments: str, **environment: str):
    return sandbox.run("-c", ARMED.format(["status", *arguments]), env=environment)


def rows(sandbox, *arguments: str, **environment: str):
    return json.loads(status(sandbox, "--json", *arguments, **environment).stdout)


def test_what_will_be_applied_stands_under_its_kind_the_worst_first(torch_tree) -> None:
    text = status(torch_tree).stdout
    fixes = [row for row in rows(torch_tree)["fixes"] if row["state"] == "waiting"]
    part = text.partition(f"\n{OPEN_HEADING}{len(fixes)}\n")[2].partition("\n\n")[0].splitlines()[1:]
    headings = [line.strip() for line in part if line.strip() in KIND_HEADINGS]
    assert headings == [name for name in KIND_HEADINGS if name in headings]
    assert len(headings) > 2
    shown = [line.split()[:2] for line in part if re.match(r"  [a-z0-9]+-", line)]
    order = {row["id"]: KINDS.index(row["kind"]) for row in fixes}
    assert sorted(id for id, _ in shown) == sorted(order)
    assert [order[id] for id, _ in shown] == sorted(order.values())
    assert dict(shown) == {row["id"]: row["fixed_in"] or "open" for row in fixes}


def test_what_is_proved_by_generated_code_or_on_a_gpu_says_so(torch_tree) -> None:
    text = " ".join(status(torch_tree).stdout.split())
    for row in rows(torch_tree)["fixes"]:
        if row["state"] == "waiting":
            on_gpu = any(way.startswith("gpu ") for way in row["proved_on"])
            generated = "generated" in row["proved_on"] and not on_gpu
            assert (f"{row['title']} (proved by generated code)" in text) == generated, row["id"]
            assert (f"{row['title']} (proved on " in text) == on_gpu, row["id"]
    assert "(proved by generated code)" in text
    releases = {"cpu": ["torch 2.9.0", "torch 2.9.1"], "generated": ["torch 2.9.0"], "gpu NVIDIA H100": ["torch 2.9.1"]}
    told = "torch 2.9.0, torch 2.9.1; torch 2.9.0 (generated code); torch 2.9.1 (NVIDIA H100)"
    assert catalog.told(releases) == told


def test_every_fix_is_named_once(torch_tree) -> None:
    text = status(torch_tree).stdout
    for row in rows(torch_tree)["fixes"]:
        assert len(re.findall(rf"(?<![\w-]){row['id']}(?![\w-])", text)) == 1, row["id"]


def test_what_is_switched_off_or_wrong_comes_with_its_reason_and_what_is_wrong_first(torch_tree) -> None:
    torch_tree.write({"torch/_inductor/codecache.py": "torch_key = 3\n"})
    text = status(torch_tree, "--live", TORCH_FORWARDFIX_DISABLE="is-exporting-folded").stdout
    wrong, off = text.index("not applied though needed here"), text.index("switched off: 1")
    assert wrong < off < text.index("not needed here")
    said = " ".join(text.split())
    assert "is-exporting-folded disabled: " in said
    assert "compile caches cannot be told apart" in said
    assert "cannot be imported" in said[said.index("waiting, though torch's compiler was loaded") :]


def test_a_hook_that_is_not_active_promises_nothing(torch_tree) -> None:
    path = os.pathsep.join([str(torch_tree.tree), library()])
    text = torch_tree.run("-S", "-m", "torch_forwardfix", "status", env={"PYTHONPATH": path}).stdout
    assert "needed, but not applied: the hook is not active" in text
    assert "fixes would apply" in text
    assert OPEN_HEADING not in text


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"NO_COLOR": "", "FORCE_COLOR": ""}, True, True),
    ],
)
def test_colours_follow_the_variables_and_the_terminal(monkeypatch, environment, terminal, coloured) -> None:
    class Stream:
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert status_text.has_colours(Stream()) == coloured


def test_colours_add_nothing_but_colours(torch_tree) -> None:
    plain, coloured = status(torch_tree).stdout, status(torch_tree, FORCE_COLOR="1").stdout
    assert "\033[" not in plain
    assert "\033[" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == plain


def test_nobody_who_stops_reading_gets_a_traceback(torch_tree) -> None:
    program = ARMED.format(["status"])
    reader = "import sys; sys.stdin.readline()"
    path = os.pathsep.join([str(torch_tree.tree), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    writer = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    subprocess.run([sys.executable, "-c", reader], stdin=writer.stdout, check=True)
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.communicate()[1] == ""


def test_the_last_line_counts_what_applies_and_names_the_release_that_needs_least(torch_tree) -> None:
    made = rows(torch_tree, "--upgrade")
    states = [row["state"] for row in made["fixes"]]
    best = min(made["upgrades"], key=lambda row: len(row["remain"]) + len(row["new"]))
    sentence = (
        f"torch 2.10.0: {states.count('waiting')} fixes apply, {states.count('not-affected')} not needed; "
        f"upgrading to {best['torch']} would make {len(best['gone'])} of them unnecessary, "
        f"and need {len(best['new'])} others."
    )
    assert " ".join(status(torch_tree).stdout.split("\n\n")[-1].split()) == sentence


def test_upgrades_are_the_newer_releases_of_the_evidence_with_what_their_ranges_say(torch_tree) -> None:
    made = rows(torch_tree, "--upgrade")
    releases = [row["torch"] for row in made["upgrades"]]
    known = {row["release"].partition(" ")[2] for row in catalog.evidence() if row["release"].startswith("torch ")}
    assert releases[0] == "2.11.0"
    assert set(releases) == known - {"2.9.0", "2.9.1", "2.10.0"}
    needed = {row["id"] for row in made["fixes"] if row["state"] == "waiting"}
    for row in made["upgrades"]:
        assert set(row["remain"]) | set(row["gone"]) == needed
        assert not set(row["new"]) & needed
    last = made["upgrades"][-1]
    assert "class-attr-guard" in last["gone"]
    assert "noop-view-alias" in last["remain"]
    assert "rewrap-compiled" in last["new"]
    text = status(torch_tree, "--upgrade").stdout
    assert [line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("torch ")][:-1] == releases
    assert max(map(len, text.splitlines())) <= 100


def test_a_fix_that_is_switched_off_comes_with_no_upgrade(torch_tree) -> None:
    made = rows(torch_tree, "--upgrade", TORCH_FORWARDFIX_DISABLE="rewrap-compiled")
    assert all("rewrap-compiled" not in row["new"] for row in made["upgrades"])


@pytest.mark.parametrize("version", ["99.0", "my own build"])
def test_no_newer_release_is_known(torch_tree, version) -> None:
    torch_tree.write({"torch/version.py": f"__version__ = {version!r}\n"})
    assert rows(torch_tree, "--upgrade")["upgrades"] == []
    assert "upgrading" not in status(torch_tree).stdout


@pytest.mark.parametrize(("vllm", "new"), [("0.19.0", True), ("0.20.0", False)])
def test_other_distributions_count_as_they_are_installed(torch_tree, vllm, new) -> None:
    torch_tree.write({"vllm/__init__.py": "", "vllm/_version.py": f"__version__ = {vllm!r}\n"})
    torch_tree.write({"torch/version.py": "__version__ = '2.8.0'\n"})
    upgrade = rows(torch_tree, "--upgrade")["upgrades"][0]
    assert ("vllm-compile-disable" in upgrade["new"] + upgrade["remain"]) == new


def test_no_torch_no_promise(sandbox) -> None:
    assert status(sandbox).stdout.splitlines()[-1] == "torch is not installed here: no fix applies."
