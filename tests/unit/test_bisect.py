"""``bisect`` names the fewest fixes that change how a command ends, or says why it cannot, and comes to an end."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations

import pytest

from torch_forwardfix.bisect import Flaky, Found, NoDifference, Status, describe, search

IDS = tuple("abcdefghijklmnopqrstuvwxyz")
WAYS = [(0, 1), (1, 0), (-11, 0), (0, None)]


def counted(status: Callable[..., Status]) -> tuple[Callable[[tuple[str, ...]], Status], list[tuple[str, ...]]]:
    """A command whose status is a function of the fixes and the number of the run, from 1; and its runs."""
    runs: list[tuple[str, ...]] = []

    def run(ids: tuple[str, ...]) -> Status:
        runs.append(ids)
        return status(ids, len(runs))

    return run, runs


@pytest.mark.parametrize(("with_it", "without"), WAYS)
@pytest.mark.parametrize("length", [1, 2, 3, 8, 26])
def test_the_one_fix_is_found_wherever_it_stands(length: int, with_it: Status, without: Status) -> None:
    for id in IDS[:length]:
        run, runs = counted(lambda ids, _, id=id: with_it if id in ids else without)
        assert search(IDS[:length], run) == Found((id,), with_it, without, without)
        assert len(runs) <= 6 + 2 * length.bit_length()


@pytest.mark.parametrize(("with_it", "without"), WAYS)
def test_two_fixes_that_are_needed_together_are_found(with_it: Status, without: Status) -> None:
    for pair in combinations(IDS[:9], 2):
        run, _ = counted(lambda ids, _, pair=pair: with_it if set(pair) <= set(ids) else without)
        assert search(IDS[:9], run) == Found(pair, with_it, without, without)


def test_a_fix_that_is_not_the_only_one_is_told_apart() -> None:
    run, _ = counted(lambda ids, _: 0 if {"b", "g"} & set(ids) else 1)
    assert search(IDS[:8], run) == Found(("b",), with_ids=0, without=1, all_but=0)


def test_a_status_that_is_neither_of_both_is_no_answer() -> None:
    run, _ = counted(lambda ids, _: 0 if "c" in ids else 1 if not ids or "e" in ids else 70 + len(ids))
    assert search(IDS[:8], run) == Found(("c",), with_ids=0, without=1, all_but=1)


@pytest.mark.parametrize("seed", range(60))
def test_any_command_that_repeats_itself_yields_fixes_of_which_none_can_be_left_out(seed: int) -> None:
    chance = random.Random(seed)
    everything = IDS[: chance.randint(1, 7)]

    @cache
    def status(ids: tuple[str, ...]) -> Status:
        return {everything: 0, (): 1}.get(ids, chance.choice([0, 1, 2, None]))

    run, runs = counted(lambda ids, _: status(ids))
    found = search(everything, run)
    assert isinstance(found, Found)
    assert (status(found.ids), found.with_ids, found.without) == (0, 0, 1)
    assert all(status(tuple(id for id in found.ids if id != left_out)) != 0 for left_out in found.ids)
    assert found.all_but == status(tuple(id for id in everything if id not in found.ids))
    assert len(runs) <= len(everything) ** 2 + 3 * len(everything) + 6


@pytest.mark.parametrize("seed", range(60))
def test_a_command_that_ends_by_chance_is_not_run_for_ever(seed: int) -> None:
    chance = random.Random(seed)
    everything = IDS[: chance.randint(1, 26)]
    run, runs = counted(lambda ids, number: [0, 0, 1, 1][number - 1] if number < 5 else chance.choice([0, 1]))
    assert isinstance(search(everything, run), Found | Flaky)
    assert len(runs) <= len(everything) ** 2 + 3 * len(everything) + 6


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0, 1], Flaky(("a", "b"), (0, 1))),
        ([0, 0, 1, None], Flaky((), (1, None))),
        ([2, 2, 2, 2], NoDifference(2)),
        ([0, 0, 1, 1, 0, 1], Flaky(("a",), (0, 1))),  # a alone, and again
        ([0, 0, 1, 1, 1, 0, 0, 0], Flaky(("a",), (1, 0))),  # a alone, b, b again, all but b
        ([0, 0, 1, 1, 1, 1, 1], Flaky(("a", "b"), (0, 1))),  # neither alone, both again
        ([0, 0, 1, 1, 1, 1, 0, 3], Flaky((), (1, 3))),  # neither alone, both again, all but both
    ],
)
def test_a_command_that_contradicts_itself_is_flaky(statuses: list[Status], expected: object) -> None:
    run, runs = counted(lambda ids, number: statuses[number - 1])
    assert search(("a", "b"), run) == expected
    assert len(runs) == len(statuses)


def test_statuses_have_names() -> None:
    said = [describe(status, 1.5) for status in (0, 139, -11, -100, None)]
    assert said == ["exit 0", "exit 139", "SIGSEGV", "signal 100", "no answer within 1.5 s"]


PLUGIN = """
from torch_forwardfix import Fix
from torch_forwardfix.patching import wrap

def fix(letter):
    return Fix(
        id=f"fix-{letter}", title=f"{letter} is off", kind="crash", upstream=(), affects={"torch": ">=2.9.dev0"},
        fixed_in=None, targets=(f"torch._dynamo:{letter}",), changes_codegen=False, is_present=lambda module: True,
        apply=lambda module: wrap(module, letter, lambda original: lambda: True), reproduce=lambda: None,
    )

FIXES = [fix(letter) for letter in "abcde"]
"""
FIVE = {"TORCH_FORWARDFIX_ONLY": "fix-a,fix-b,fix-c,fix-d,fix-e"}
ONE = {"TORCH_FORWARDFIX_ONLY": "fix-a"}
START = "import os, signal, sys, time; from torch._dynamo import *; "


@pytest.fixture
def bisect(torch_tree, tmp_path):
    """Run bisect over a Python program; the fixes make the functions a to e of torch._dynamo return True."""
    (tmp_path / "tmp").mkdir()
    torch_tree.write(
        {
            "torch/_dynamo/__init__.py": "a = b = c = d = e = lambda: False\n",
            "plug.py": PLUGIN,
            "plug-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1\n",
            "plug-1.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nplug = plug:FIXES\n",
            # Arms the hook where these tests run on the sources, without the .pth file.
            "sitecustomize.py": "import torch_forwardfix; torch_forwardfix.init()\n",
        }
    )

    def run(program: str, *options: str, arguments: tuple[str, ...] = (), **environment: str):
        command = (sys.executable, "-c", START + program, *arguments)
        environment = {**FIVE, "TMPDIR": str(tmp_path / "tmp"), **environment}
        process = torch_tree.run("-m", "torch_forwardfix", "bisect", *options, "--", *command, env=environment)
        assert "Traceback" not in process.stderr
        return process

    return run


def test_the_one_fix_that_makes_the_command_pass_is_named(bisect, tmp_path) -> None:
    # What follows -- belongs to the command, another -- as well.
    program = "print(a(), b(), c(), file=sys.stderr); sys.exit(9 if sys.argv[1:] != ['--json', '--', 'x'] else not c())"
    process = bisect(program, arguments=("--json", "--", "x"))
    assert process.returncode == 0, process.stderr
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.name.startswith("torch-forwardfix-bisect-")
    *lines, last = process.stdout.splitlines()
    assert lines == [
        "without: exit 1, with fix-c: exit 0",
        "with all fixes but fix-c: exit 1",
        "fix-c: c is off",
    ]
    first, *progress = process.stderr.splitlines()
    assert first == f"fixes to choose from: 5; output of the runs: {folder}"
    assert last == f"runs: {len(progress)}, output of the runs: {folder}"
    assert [line.partition(" (")[0] for line in progress[:4]] == [
        "run 1: 5 of 5 fixes: exit 0",
        "run 2: 5 of 5 fixes: exit 0",
        "run 3: 0 of 5 fixes: exit 1",
        "run 4: 0 of 5 fixes: exit 1",
    ]
    assert len(list(folder.iterdir())) == len(progress)
    assert (folder / "01-with-5.out").read_text() == "True True True\n"
    assert (folder / "03-with-0.out").read_text() == "False False False\n"


def test_two_fixes_that_break_the_command_together_are_named(bisect, tmp_path) -> None:
    process = bisect("sys.exit(3 if b() and e() else 0)", "--json", "--keep", str(tmp_path / "new" / "kept"))
    assert process.returncode == 0, process.stderr
    made = json.loads(process.stdout)
    assert (made["verdict"], made["ids"]) == ("found", ["fix-b", "fix-e"])
    assert (made["with"], made["without"], made["all_but"]) == (3, 0, 0)
    assert made["candidates"] == ["fix-a", "fix-b", "fix-c", "fix-d", "fix-e"]
    assert made["folder"] == str(tmp_path / "new" / "kept")
    assert [row["output"] for row in made["runs"]] == sorted(map(str, (tmp_path / "new" / "kept").iterdir()))
    assert made["runs"][0]["ids"] == made["candidates"]
    for row in made["runs"]:
        assert row["status"] == (3 if {"fix-b", "fix-e"} <= set(row["ids"]) else 0)
    assert not list((tmp_path / "tmp").iterdir())


def test_what_breaks_the_command_comes_with_the_switch_that_avoids_it(bisect) -> None:
    assert "TORCH_FORWARDFIX_DISABLE=fix-d avoids it\n" in bisect("sys.exit(d())").stdout


@pytest.mark.parametrize(
    ("program", "options", "said"),
    [
        ("a() or os.kill(os.getpid(), signal.SIGSEGV)", (), "without: SIGSEGV, with fix-a: exit 0"),
        ("a() or time.sleep(600)", ("--timeout", "4"), "without: no answer within 4 s, with fix-a: exit 0"),
    ],
)
def test_a_signal_and_a_hang_are_statuses(bisect, program: str, options: tuple[str, ...], said: str) -> None:
    process = bisect(program, *options, **ONE)
    assert (process.returncode, process.stdout.splitlines()[0]) == (0, said)


def test_a_command_that_fails_every_other_time_is_flaky(bisect, tmp_path) -> None:
    counter = tmp_path / "counter"
    program = f"open({str(counter)!r}, 'a').write('x'); sys.exit(os.path.getsize({str(counter)!r}) % 2)"
    process = bisect(program)
    assert process.returncode == 1
    assert process.stdout.startswith("the command is flaky: with all fixes it gave exit 1 and then exit 0\nruns: 2, ")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "the fixes make no difference: exit 0 with all and with none\nruns: 4, "),
        # What the user has switched off stays off.
        ({"TORCH_FORWARDFIX_DISABLE": "fix-c"}, "the fixes make no difference: exit 1 with all and with none\n"),
        ({"TORCH_FORWARDFIX": "0"}, "no fix would be applied here; python -m torch_forwardfix status says why\n"),
    ],
)
def test_where_the_fixes_make_no_difference_it_says_so(bisect, environment: dict[str, str], said: str) -> None:
    process = bisect("sys.exit(not c())" if environment else "pass", **environment)
    assert process.returncode == 1
    assert process.stdout.startswith(said)


def test_a_wrong_setting_is_named(bisect) -> None:
    assert "did you mean 'fix-a'?" in bisect("pass", TORCH_FORWARDFIX_DISABLE="fix-aa").stderr


def test_a_hook_that_is_not_armed_is_told(bisect, torch_tree) -> None:
    disarm = "sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not torch_forwardfix.watcher]"
    torch_tree.write({"sitecustomize.py": f"import sys, torch_forwardfix\n{disarm}\n"})
    assert "the hook is not active in this interpreter: " in bisect("sys.exit(not c())").stdout


CACHES = """
cache = os.environ.get('TORCHINDUCTOR_CACHE_DIR')
print(cache, repr(sys.stdin.read()))
if os.listdir(cache): sys.exit(7)
open(os.path.join(cache, 'kernel'), 'w').close()
sys.exit(not a())
"""


def test_each_run_has_compile_caches_of_its_own_and_no_input(bisect, tmp_path) -> None:
    process = bisect(CACHES, "--keep", str(tmp_path / "kept"), **ONE)
    assert process.stdout.startswith("without: exit 1, with fix-a: exit 0\n")
    printed = [file.read_text().split() for file in (tmp_path / "kept").iterdir()]
    assert len({cache for cache, _ in printed}) == len(printed) == 6
    assert {typed for _, typed in printed} == {"''"}
    assert not list((tmp_path / "tmp").iterdir())


def test_shared_caches_are_those_of_the_user(bisect, tmp_path) -> None:
    (tmp_path / "cache").mkdir()
    process = bisect(CACHES, "--shared-caches", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), **ONE)
    assert "flaky: with all fixes it gave exit 0 and then exit 7" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("--",), "the following arguments are required: COMMAND"),
        (("--timeout", "0", "--", "true"), "'0' is not a number of seconds above 0"),
        (("--timeout", "nan", "--", "true"), "'nan' is not a number of seconds above 0"),
        (("--timeout", "soon", "--", "true"), "'soon' is not a number of seconds above 0"),
        (("--", "no-such-command"), "'no-such-command' cannot be started: No such file or directory"),
        (("--", "./plain"), "'./plain' cannot be started: Permission denied"),
        (("--", "./empty"), "'./empty' cannot be started: Exec format error"),
        (("--keep", "plain", "--", "true"), "plain: File exists"),
        (("--keep", ".", "--", "true"), ".: Directory not empty"),
    ],
)
def test_what_cannot_be_done_is_named_and_exits_2(bisect, torch_tree, tmp_path, arguments, said: str) -> None:
    (torch_tree.cwd / "plain").write_text("")
    (torch_tree.cwd / "empty").write_text("\0")
    (torch_tree.cwd / "empty").chmod(0o755)
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    process = torch_tree.run("-m", "torch_forwardfix", "bisect", *arguments, env=environment)
    assert (process.returncode, process.stdout) == (2, "")
    assert said in process.stderr
    assert "Traceback" not in process.stderr
    assert not list((tmp_path / "tmp").iterdir())


# Starts bisect over a command that, in its fifth run, starts a process that is deaf to SIGINT, and hangs. Then sends
# signals to bisect; says how it ended and which processes are left.
DRIVER = """
import os, signal, subprocess, time
program = '''
import os, signal, subprocess, sys, time
with open("pids", "a") as file: print(os.getpid(), file=file)
number = len(open("pids").readlines())
if number < 5: sys.exit(number > 2)
if {deaf}: signal.signal(signal.SIGINT, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
child.stdout.readline()
with open("pids", "a") as file: print(child.pid, file=file)
open("ready", "w").close()
time.sleep(600)
'''
command = [sys.executable, "-m", "torch_forwardfix", "bisect", "--", sys.executable, "-c", program]
# The shell that started these tests may have switched SIGINT off for them.
heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
while not os.path.exists("ready"):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
for signum in {signals}:
    process.send_signal(signum)
    time.sleep(0.5)
output, errors = process.communicate(timeout=4)
def running(pid):
    try:
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
left = [pid for pid in open("pids").read().split() if running(pid)]
say(process.returncode, output, errors, left, os.listdir(os.environ["TMPDIR"]))
"""


@pytest.mark.parametrize(
    ("deaf", "signals", "status", "name"),
    [
        (False, [2], 130, "SIGINT"),
        (True, [2, 2], 130, "SIGINT"),  # the second one does not wait for the command to end by itself
        (False, [15], 143, "SIGTERM"),
    ],
)
def test_stopped_it_leaves_no_process_and_tells_what_is_known(
    bisect, torch_tree, tmp_path, deaf: bool, signals: list[int], status: int, name: str
) -> None:
    environment = {**FIVE, "TMPDIR": str(tmp_path / "tmp")}
    answer = torch_tree.ask(DRIVER.format(deaf=deaf, signals=signals), env=environment)
    returncode, output, errors, left, (folder,) = answer
    assert (returncode, output, left) == (status, "", [])
    assert "Traceback" not in errors
    *_, last = errors.splitlines()
    assert last == (
        f"stopped by {name} after 4 runs: with all fixes: exit 0, without: exit 1, "
        "enough for exit 0: fix-a and fix-b and fix-c and fix-d and fix-e; "
        f"output of the runs: {tmp_path / 'tmp' / folder}"
    )
