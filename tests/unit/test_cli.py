from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from torch_forwardfix.cli import parser

pytestmark = pytest.mark.skipif(
    find_spec("torch") is not None, reason="ABOUT AN ENVIRONMENT WITHOUT TORCH: nox -s tests makes one"
)

REPORT_KEYS = ["version", "python", "torch", "enabled", "active", "reason", "live", "unloadable", "fingerprint"]
REPORT_KEYS += ["fixes", "unfixed"]
FIX_KEYS = [
    "id",
    "title",
    "kind",
    "upstream",
    "affects",
    "fixed_in",
    "targets",
    "changes_codegen",
    "state",
    "reason",
    "proved_on",
]
UNFIXED_KEYS = [*FIX_KEYS[:6], "why", "workaround", "here", "reason", "seen_on"]
ARMED = """
import sys, torch_forwardfix
torch_forwardfix.init()
from torch_forwardfix.cli import main
sys.exit(main({}))
"""


def cli(sandbox, *arguments: str, env: dict[str, str] | None = None) -> Any:
    return sandbox.run("-m", "torch_forwardfix", *arguments, env=env)


def library() -> str:
    """Where our modules and their requirements are, for interpreters without site-packages."""
    homes = []
    for name in ("torch_forwardfix", "packaging", "importlib_metadata", "zipp"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            homes.append(str(Path(spec.origin).parents[1]))
    return os.pathsep.join(dict.fromkeys(homes))


def test_status_without_torch_says_so(sandbox) -> None:
    process = cli(sandbox, "status")
    assert (process.returncode, process.stderr) == (0, "")
    assert "torch is not installed" in process.stdout.splitlines()[0]
    assert "fxgraph-cache-valueerror" in process.stdout.partition("not needed here:")[2]
    assert process.stdout.splitlines()[-1] == "torch is not installed here: no fix applies."


def test_json_has_the_keys_of_the_contract(sandbox) -> None:
    process = cli(sandbox, "status", "--json")
    assert process.returncode == 0
    report = json.loads(process.stdout)
    assert list(report) == REPORT_KEYS
    assert report["torch"] is None
    assert (report["enabled"], report["live"]) == (True, False)
    assert len(report["fixes"]) >= 4
    for row in report["unfixed"]:
        assert list(row) == UNFIXED_KEYS
        assert not row["here"]
        assert row["reason"] == "torch is not installed"
    for row in report["fixes"]:
        assert list(row) == FIX_KEYS
        assert row["state"] == "not-affected"
        assert "not installed" in row["reason"]


def test_status_tells_the_version_of_torch_without_importing_it(torch_tree) -> None:
    torch_tree.write({"torch/__init__.py": "raise SystemExit(9)\n"})
    report = json.loads(cli(torch_tree, "status", "--json").stdout)
    assert report["torch"] == "2.10.0"
    states = {row["id"]: row["state"] for row in report["fixes"]}
    assert states["fxgraph-cache-valueerror"] == "waiting"
    assert states["compile-disable"] == "not-affected"


def test_live_status_says_what_cannot_be_imported(torch_tree) -> None:
    process = torch_tree.run("-c", ARMED.format(["status", "--live", "--json"]))
    report = json.loads(process.stdout)
    assert (report["live"], report["active"]) == (True, True)
    rows = {row["id"]: row for row in report["fixes"]}
    assert rows["fxgraph-cache-valueerror"]["state"] == "waiting"
    assert "torch._inductor.codecache cannot be imported" in rows["fxgraph-cache-valueerror"]["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("status", "--nonsense"),
        ("status", "extra"),
        ("show",),
        ("show", "a", "b"),
        ("verify", "--live"),
    ],
)
def test_wrong_usage_exits_2(sandbox, arguments: tuple[str, ...]) -> None:
    process = cli(sandbox, *arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert "usage:" in process.stderr
    assert "Traceback" not in process.stderr


COMMANDS = ("status", "show", "verify", "bisect", "startup", "doctor")


def test_help_names_every_command(sandbox) -> None:
    said = cli(sandbox, "--help").stdout
    assert [line.split()[0] for line in said.splitlines() if line.startswith("    ")] == [*COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_exit_statuses_and_an_example_that_can_be_typed(sandbox, command: str) -> None:
    said = cli(sandbox, command, "--help").stdout
    statuses = said.partition("exit status:\n")[2].partition("\n\n")[0].splitlines()
    assert [int(line.split()[0]) for line in statuses] in ([0, 2], [0, 1, 2], [0, 1, 2, 130])
    example = said.partition("example:\n")[2].strip()
    start = "python -m torch_forwardfix "
    assert example.startswith(start + command)
    assert "\n" not in example
    options = parser().parse_args(example.removeprefix(start).split())
    assert options.run.__name__ == f"_{command}"


@pytest.mark.parametrize("command", ["show", "verify"])
def test_unknown_id_exits_2_and_is_named(sandbox, command: str) -> None:
    process = cli(sandbox, command, "nonsense")
    assert process.returncode == 2
    assert process.stdout == ""
    assert "'nonsense'" in process.stderr
    assert "Traceback" not in process.stderr


def test_unknown_id_comes_with_the_nearest_one(sandbox) -> None:
    assert "did you mean 'aot-builtins'?" in cli(sandbox, "show", "aot-builtin").stderr


def test_show_tells_the_story(sandbox) -> None:
    process = cli(sandbox, "show", "fxgraph-cache-valueerror")
    assert (process.returncode, process.stderr) == (0, "")
    for said in ("pytorch/pytorch#176557", "pytorch/pytorch#176532", "vllm-project/vllm#38205", "2.11.0"):
        assert said in process.stdout
    assert "A cache key that cannot be pickled kills the compile." in process.stdout
    assert "not-affected: torch is not installed" in process.stdout


def test_bug_that_stays_is_told_where_this_torch_has_it(torch_tree) -> None:
    report = json.loads(cli(torch_tree, "status", "--json").stdout)
    (bug,) = (row for row in report["unfixed"] if row["id"] == "set-mutation-lost")
    assert (bug["here"], bug["reason"]) == (True, None)
    assert "torch 2.10.0" in bug["seen_on"]["cpu"]
    shown = cli(torch_tree, "status").stdout
    assert "  set-mutation-lost " in shown.partition("known and not fixed here:")[2]
    assert f"what to do: {bug['workaround']}" in " ".join(shown.split())


def test_bug_that_stays_is_not_told_where_this_torch_has_it_not(sandbox) -> None:
    assert "not fixed here" not in cli(sandbox, "status").stdout


def test_show_tells_why_a_bug_stays_and_what_to_do(sandbox) -> None:
    process = cli(sandbox, "show", "set-mutation-lost")
    assert (process.returncode, process.stderr) == (0, "")
    for said in ("not fixed:", "what to do:", "seen on:", "torch is not installed", "Upstream tracks and replays them"):
        assert said in process.stdout


@pytest.mark.parametrize("arguments", [("status",), ("show", "set-mutation-lost"), ("verify", "set-mutation-lost")])
def test_version_that_cannot_be_read_is_told_of_bugs_that_stay(torch_tree, arguments: tuple[str, ...]) -> None:
    torch_tree.write({"torch/version.py": "__version__ = 'my own build'\n"})
    process = cli(torch_tree, *arguments)
    assert process.stderr == ""
    assert "torch calls itself 'my own build', which is not a PEP 440 version" in " ".join(process.stdout.split())


def test_verify_without_torch_runs_nothing(sandbox) -> None:
    process = cli(sandbox, "verify")
    assert process.returncode == 0
    assert "not-affected: torch is not installed" in " ".join(process.stdout.split())
    assert "0 of 0 proved here" in process.stdout
    report = json.loads(cli(sandbox, "verify", "--json").stdout)
    assert report["proofs"] == []
    assert "aot-builtins" in report["not_run"]


def test_check_passes_when_armed(sandbox) -> None:
    process = sandbox.run("-c", ARMED.format(["status", "--check"]))
    assert process.returncode == 0, process.stdout
    assert process.stdout.splitlines()[0].endswith(": active")


def test_check_fails_when_switched_off(sandbox) -> None:
    process = cli(sandbox, "status", "--check", env={"TORCH_FORWARDFIX": "0"})
    assert process.returncode == 1
    assert ": not active" in process.stdout
    assert "TORCH_FORWARDFIX switches everything off" in process.stdout


def test_check_fails_without_site(sandbox) -> None:
    process = sandbox.run("-S", "-m", "torch_forwardfix", "status", "--check", env={"PYTHONPATH": library()})
    assert process.returncode == 1, process.stderr
    assert "-S" in process.stdout


def test_check_fails_where_a_fix_failed(torch_tree) -> None:
    torch_tree.write({"torch/version.py": "__version__ = 'not a version'\n"})
    process = torch_tree.run("-c", ARMED.format(["status", "--check"]))
    assert process.returncode == 1
    assert "'not a version'" in process.stdout


def test_wrong_setting_is_named(sandbox) -> None:
    process = cli(sandbox, "status", env={"TORCH_FORWARDFIX_DISABLE": "aot-builtin"})
    assert process.returncode == 0
    assert "did you mean 'aot-builtins'?" in " ".join(process.stdout.split())


def test_check_fails_where_the_compiler_cannot_be_imported(torch_tree) -> None:
    torch_tree.write({"torch/__init__.py": "raise ImportError('libtorch.so is not there')\n"})
    process = torch_tree.run("-c", ARMED.format(["status", "--live", "--check"]))
    assert process.returncode == 1
    said = " ".join(process.stdout.split())
    assert "not applied: torch's compiler cannot be imported: " in said
    assert "waiting: torch._dynamo cannot be imported: ImportError: libtorch.so is not there" in said
    assert said.endswith("torch 2.10.0: its compiler cannot be imported, so that no fix applies.")


@pytest.mark.parametrize("name", ["vllm", "torch"])
def test_rest_of_a_broken_uninstall_is_not_installed(torch_tree, name: str) -> None:
    if name == "torch":
        torch_tree.write({"torch/version.py": ""})
    torch_tree.write({f"{name}-0.1.dist-info/RECORD": ""})
    report = json.loads(cli(torch_tree, "status", "--json").stdout)
    reasons = {row["id"]: row["reason"] for row in report["fixes"]}
    assert reasons["vllm-compile-disable"].endswith(f"{name if name == 'vllm' else 'vllm'} is not installed")
    assert (report["torch"] is None) == (name == "torch")


def test_plugin_without_metadata_costs_no_other_plugin(torch_tree) -> None:
    torch_tree.write(
        {
            "rest-1.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nrest = no_such_module:FIX\n",
            "gone-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: gone\nVersion: 1\n",
            "gone-1.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\ngone = not_there_either:FIX\n",
        }
    )
    rows = {row["id"]: row["state"] for row in json.loads(cli(torch_tree, "status", "--json").stdout)["fixes"]}
    assert rows["gone:gone"] == "failed"
    assert rows["no_such_module:FIX:rest"] == "failed"


def test_missing_requirement_is_named(sandbox) -> None:
    code = "import sys, runpy; sys.modules['importlib_metadata'] = None; sys.argv[1:] = ['status']\n"
    code += "runpy.run_module('torch_forwardfix', run_name='__main__')"
    process = sandbox.run("-c", code)
    assert process.returncode == 1
    assert process.stderr.startswith("torch-forwardfix: importlib_metadata is missing: pip install importlib_metadata")


def test_torch_of_a_finder_of_its_own_is_as_good_as_another(torch_tree) -> None:
    """As setuptools' editable installs have it."""
    (torch_tree.tree / "torch").rename(torch_tree.tree / "source")
    torch_tree.write(
        {
            "source/version.py": "__version__ = '2.10.0'\ngit_version = 'abc123'\n",
            "torch-2.10.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0\n",
            "sitecustomize.py": """
import sys
from importlib.util import spec_from_file_location
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            folder = __file__.rpartition("sitecustomize")[0] + "source"
            return spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.meta_path.append(Editable)
""",
        }
    )
    report = json.loads(cli(torch_tree, "status", "--json").stdout)
    assert (report["torch"], report["fingerprint"]["versions"]["torch-commit"]) == ("2.10.0", "abc123")
    found = json.loads(cli(torch_tree, "doctor", "--json").stdout)["findings"]
    assert "torch-broken" not in {row["code"] for row in found}


@pytest.mark.parametrize("command", ["status", "show mul-zero-nan", "doctor", "verify", "--help", "status --help"])
def test_reader_that_goes_away_is_no_error(sandbox, command: str) -> None:
    program = f"exec 3>&1; {{ {sys.executable} -m torch_forwardfix {command}; echo $? >&3; }} | true"
    process = subprocess.run(
        ["bash", "-c", program],
        cwd=sandbox.cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
    )
    # Whether the reader was quicker is not for us to say.
    assert process.stdout.strip() in ("0", "1", "141")
    assert process.stderr == ""


def test_closed_output_is_no_error(sandbox) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f"{sys.executable} -m torch_forwardfix verify --json {closed}"
        process = subprocess.run(["bash", "-c", command], cwd=sandbox.cwd, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout == "" or json.loads(process.stdout)["proofs"] == []


def test_what_the_terminal_cannot_show_is_escaped(torch_tree) -> None:
    torch_tree.write({"torch/version.py": "__version__ = '\u4e2d'\n"})
    process = cli(torch_tree, "status", env={"PYTHONIOENCODING": "ascii"})
    assert (process.returncode, process.stderr) == (0, "")
    assert r"torch \u4e2d" in process.stdout


def test_show_lines_fit_100_columns(sandbox) -> None:
    code = "from torch_forwardfix import catalog, cli\n"
    code += "for id in [*catalog.load().fixes, *catalog.unfixed()]: cli.main(['show', id])\n"
    lines = sandbox.run("-c", code).stdout.splitlines()
    assert len(lines) > 500
    # A long name stays in one piece.
    assert [line for line in lines if len(line) > 100 and len(line.split()) > 1] == []


def test_help_lines_fit_100_columns(sandbox) -> None:
    for command in COMMANDS:
        lines = cli(sandbox, command, "--help", env={"COLUMNS": "100"}).stdout.splitlines()
        assert [line for line in lines if len(line) > 100] == []


def test_long_ids_are_set_off_from_the_next_column(torch_tree) -> None:
    torch_tree.write(
        {
            "plug-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: a-plug-in-with-a-long-name\nVersion: 1\n",
            "plug-1.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nmade-up = not_there:FIX\n",
        }
    )
    assert "  a-plug-in-with-a-long-name:made-up failed: plug-in" in cli(torch_tree, "status").stdout


@pytest.mark.parametrize("env", [{}, {"TORCH_FORWARDFIX": "0"}, {"TORCH_FORWARDFIX_DISABLE": "nonsense,other,third"}])
def test_status_lines_fit_100_columns(torch_tree, env: dict[str, str]) -> None:
    lines = cli(torch_tree, "status", env=env).stdout.splitlines()
    assert len(lines) > 10
    assert max(map(len, lines)) <= 100


def test_version_is_printed(sandbox) -> None:
    process = cli(sandbox, "--version")
    assert process.returncode == 0
    assert process.stdout.startswith("torch-forwardfix 0.")
