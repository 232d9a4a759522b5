from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "compare"
sys.path.insert(0, str(FOLDER))

import comparer  # noqa: E402
import run  # noqa: E402
import summarise  # noqa: E402

CASE = "ops/aot_eager/sum"


def record(**fields):
    return {"case": CASE, "verdict": "ok", "values": "aa", "graphs": 1, **fields}


def compare(off, on, again_off=None, again_on=None):
    again = [{} if one is None else {CASE: one} for one in (again_off, again_on)]
    return comparer.compare({CASE: off}, {CASE: on}, *again)


def test_equal_records_are_no_difference():
    assert compare(record(), record()) == comparer.Comparison([], {}, {"off": [], "on": []}, [])


@pytest.mark.parametrize("field", comparer.FIELDS)
def test_a_difference_that_comes_again_is_found_in_every_field(field):
    off, on = record(**{field: "one"}), record(**{field: "other"})
    found = compare(off, on, off, on)
    assert found.differences == [comparer.Difference(CASE, {field: ("one", "other")})]
    assert found.flaky == {}


def test_a_field_that_only_one_arm_recorded_is_a_difference():
    on = record(code="cc")
    assert compare(record(), on, record(), on).differences[0].fields == {"code": (None, "cc")}


@pytest.mark.parametrize("unsteady", ["off", "on"])
def test_what_differs_between_runs_of_one_arm_is_flaky(unsteady):
    off, on = record(values="one"), record(values="other")
    again = {"off": off, "on": on, unsteady: record(values="third")}
    found = compare(off, on, again["off"], again["on"])
    assert found.differences == []
    assert found.flaky == {CASE: ["values"]}


def test_a_flaky_field_hides_no_other():
    off, on = record(values="one", graphs=1), record(values="other", graphs=2)
    found = compare(off, on, record(values="third", graphs=1), on)
    assert found.differences == [comparer.Difference(CASE, {"graphs": (1, 2)})]
    assert found.flaky == {CASE: ["values"]}


def test_a_difference_that_was_not_run_again_is_open():
    found = compare(record(), record(values="bb"), record(), None)
    assert found.open == [CASE]
    assert found.differences == []


def test_cases_that_one_arm_lacks_are_missing():
    found = comparer.compare(
        {CASE: record(), "ops/aot_eager/add": record()}, {CASE: record(), "x/y/z": record()}, {}, {}
    )
    assert found.missing == {"off": ["x/y/z"], "on": ["ops/aot_eager/add"]}


def test_a_difference_is_told_without_its_digests():
    difference = comparer.Difference(CASE, {"verdict": ("error", "ok"), "code": ("aa", "bb")})
    assert str(difference) == "verdict error -> ok; code"


def test_the_fix_that_makes_the_difference_alone_is_named():
    difference = comparer.Difference(CASE, {"graphs": (1, 2)})
    alone = {"a": record(graphs=2), "b": record(graphs=1, values="bb")}
    assert comparer.blame(difference, record(), alone) == ["a"]


def test_verdicts_are_counted_by_kind():
    records = {CASE: record(), "ops/aot_eager/add": record(verdict="error"), "models/aot_eager/t5": record()}
    assert comparer.counts(records) == {
        "models/aot_eager": {"cases": 1, "ok": 1, "mismatch": 0, "error": 0},
        "ops/aot_eager": {"cases": 2, "ok": 1, "mismatch": 0, "error": 1},
    }


def test_a_line_that_was_cut_off_is_left_out_and_the_next_one_is_not(tmp_path):
    file = tmp_path / "off.jsonl"
    file.write_text(json.dumps(record()) + '\n{"case": "ops/aot')
    assert list(comparer.read(file)) == [CASE]
    run._end_line(file)
    with file.open("a") as lines:
        lines.write(json.dumps(record() | {"case": "next"}) + "\n")
    assert list(comparer.read(file)) == [CASE, "next"]


EXPLANATIONS = [{"fix": "a", "cases": "ops/*/sum", "why": "it was wrong"}]


def test_a_difference_is_explained_by_every_fix_that_causes_it_or_not_at_all():
    assert comparer.explain(CASE, ["a"], EXPLANATIONS) == "it was wrong"
    assert comparer.explain(CASE, ["a", "b"], EXPLANATIONS) is None
    assert comparer.explain(CASE, [], EXPLANATIONS) is None
    assert comparer.explain("ops/aot_eager/add", ["a"], EXPLANATIONS) is None


def release(torch="2.10.0", **more):
    arms = {arm: comparer.counts({CASE: record()}) for arm in ("off", "on")}
    nothing = {"differences": [], "flaky": {}, "missing": {"off": [], "on": []}, "open": []}
    return {"torch": torch, "package": "x", "fixes": ["a"], "arms": arms, **nothing, **more}


def difference(*fixes, case=CASE):
    return {"case": case, "what": "code", "fixes": list(fixes)}


def test_only_what_is_not_explained_is_a_fault():
    explained = summarise.merge([release(differences=[difference("a")])], EXPLANATIONS)
    assert summarise.faults(explained) == []
    assert summarise.faults(summarise.merge([release(differences=[difference("b")])], EXPLANATIONS))
    assert summarise.faults(summarise.merge([release(missing={"off": [], "on": [CASE]})], []))
    assert summarise.faults(summarise.merge([release(open=[CASE])], []))
    assert summarise.faults(summarise.merge([release(arms={"off": {}, "on": {}})], []))


def test_releases_of_different_states_of_the_package_are_not_one_evidence():
    assert summarise.faults(summarise.merge([release("2.9.1"), release("2.10.0", package="y")], []))


def test_like_differences_become_one_row_and_releases_are_in_order():
    other = "ops/inductor-code/sum"
    rows = [difference("a"), difference("a", case=other)]
    evidence = summarise.merge([release("2.10.0", differences=rows), release("2.9.1")], EXPLANATIONS)
    assert [one["torch"] for one in evidence["releases"]] == ["2.9.1", "2.10.0"]
    row = {"what": "code", "fixes": "a", "why": "it was wrong", "cases": [CASE, other]}
    assert evidence["releases"][1]["differences"] == [row]
    assert json.loads(summarise.as_text(evidence)) == evidence


def test_every_explanation_has_its_fields():
    for row in json.loads((FOLDER / "explained.json").read_text(encoding="utf-8")):
        assert sorted(row) == ["cases", "fix", "why"]


# An environment with a package called torch, and a worker that answers as it is told to.
WORKER = """
import json, os, sys
arm = "off" if os.environ.get("TORCH_FORWARDFIX") == "0" else "on"
for line in sys.stdin:
    question = line.strip()
    name = question.rpartition("/")[2]
    if question == "list":
        cases = ["ops/aot_eager/same", "ops/aot_eager/hangs", "ops/aot_eager/dies", "ops/inductor-code/code"]
        answer = {"cases": cases + CASES, "versions": {}, "ours": "x"}
    elif question == "fixes":
        answer = {"good": "applied" if arm == "on" else "disabled", "other": "applied" if arm == "on" else "disabled"}
    else:
        if name == "dies":
            os._exit(7)
        if name == "hangs":
            import time
            time.sleep(60)
        with open(os.environ["STARTED"], "a") as file:
            file.write(f"{arm} {question}\\n")
        changed = arm == "on" and os.environ.get("TORCH_FORWARDFIX_ONLY", "good") == "good"
        answer = {"case": question, "verdict": "ok", "code": arm if name == "code" and changed else "same"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A folder of programs whose worker is ours, and the file with the cases that were run."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in run.PROGRAMS:
        (programs / name).write_text("")
    (programs / "explained.json").write_text("[]")
    (programs / "worker.py").write_text("CASES = []\n" + WORKER)
    metadata = tmp_path / "site" / "torch-2.10.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0+cpu\n")
    monkeypatch.setattr(run, "HERE", programs)
    monkeypatch.setattr(run, "TIMEOUT", 4)
    monkeypatch.setattr(run, "START", 60)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    return tmp_path / "started"


def compare_release(out):
    return run.compare_release(run.Release(sys.executable, out, 2, "*"))


def test_the_driver_survives_its_workers_runs_changed_code_and_names_the_fix(started, tmp_path):
    summary = compare_release(tmp_path / "out")
    assert summary["torch"] == "2.10.0"
    assert summary["fixes"] == ["good", "other"]
    assert summary["arms"]["off"] == summary["arms"]["on"]
    assert summary["arms"]["on"]["ops/aot_eager"] == {
        "cases": 3,
        "ok": 1,
        "mismatch": 0,
        "error": 1,
        "timeout": 1,
    }
    cases = ["ops/inductor-code/code", "ops/inductor-run/code"]
    assert summary["differences"] == [{"case": case, "what": "code", "fixes": ["good"]} for case in cases]
    details = [
        row["detail"] for row in comparer.read(tmp_path / "out/torch-2.10.0/on.jsonl").values() if "detail" in row
    ]
    assert details == ["took too long", "the process ended with 7"]
    assert summarise.faults(summarise.merge([summary], [{"fix": "good", "cases": "*", "why": "meant"}])) == [
        "torch 2.10.0: 1 of ops/aot_eager took too long (off)",
        "torch 2.10.0: 1 of ops/aot_eager took too long (on)",
    ]


@pytest.mark.parametrize(
    ("known", "tried"), [("good", {"good"}), ("other", {"good", "other"}), ("no such fix", {"good", "other"})]
)
def test_where_the_fix_is_known_that_makes_a_difference_no_other_is_tried(started, tmp_path, known, tried):
    worker = run.HERE / "worker.py"
    worker.write_text(worker.read_text().replace('"ops/aot_eager/hangs", "ops/aot_eager/dies", ', ""))
    explanation = {"fix": known, "cases": "ops/*/code", "why": "meant"}
    (run.HERE / "explained.json").write_text(json.dumps([explanation]))
    summary = compare_release(tmp_path / "out")
    assert [row["fixes"] for row in summary["differences"]] == [["good"], ["good"]]
    alone = {file.name for file in (tmp_path / "out/torch-2.10.0").glob("on-again-*.jsonl")}
    assert alone == {f"on-again-{fix}.jsonl" for fix in tried}


def test_a_case_that_took_too_long_is_run_again_in_the_next_run(started, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PROGRAMS", ())
    compare_release(tmp_path / "out")
    program = run.HERE / "worker.py"
    program.write_text(program.read_text().replace("time.sleep(60)", "pass"))
    started.write_text("")
    assert compare_release(tmp_path / "out")["arms"]["on"]["ops/aot_eager"]["ok"] == 2
    assert sorted(started.read_text().splitlines()) == ["off ops/aot_eager/hangs", "on ops/aot_eager/hangs"]


def test_what_is_known_is_not_run_again_unless_the_fixes_or_the_cases_changed(started, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TIMEOUT", 20)
    programs = run.HERE / "worker.py"
    programs.write_text(programs.read_text().replace('"ops/aot_eager/hangs", "ops/aot_eager/dies", ', ""))
    first = compare_release(tmp_path / "out")
    started.write_text("")
    assert compare_release(tmp_path / "out") == first
    assert started.read_text() == ""
    monkeypatch.setattr(
        run.Release, "_ask_about", lambda self, ask=run.Release._ask_about: {**ask(self), "ours": "changed"}
    )
    assert compare_release(tmp_path / "out") == {**first, "package": "changed"}
    # Of the arm without fixes only what differs is run, once more.
    assert {line for line in started.read_text().splitlines() if line.startswith("off")} == {
        "off ops/inductor-code/code",
        "off ops/inductor-run/code",
    }
    assert "on ops/aot_eager/same" in started.read_text()


def test_the_exit_status_of_the_summary_tells_of_a_fault(tmp_path):
    for differences, status in (([], 0), ([difference("a")], 1)):
        folder = tmp_path / str(status) / "torch-2.10.0"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(release(differences=differences)))
        command = [sys.executable, str(FOLDER / "summarise.py"), str(folder.parent), str(tmp_path / "evidence.json")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        assert json.loads((tmp_path / "evidence.json").read_text())["releases"][0]["torch"] == "2.10.0"
