"""Which fix matters: a command is run with some of the fixes and without the others, until its exit status tells."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from . import settings
from .verify import own_caches

# The exit status as subprocess gives it, negative for a signal; None where there was none within the time limit.
Status = int | None

# How long a command that is stopped may take to clean up after itself before it is killed.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Found:
    """``ids`` alone give the status of all fixes together, and no one of them can be left out.

    ``with_ids``, ``without`` and ``all_but`` are the statuses with these fixes alone, with none, and with all others.
    Where ``all_but`` is ``with_ids``, other fixes do the same.
    """

    ids: tuple[str, ...]
    with_ids: Status
    without: Status
    all_but: Status


@dataclass(frozen=True)
class NoDifference:
    """With all fixes and with none the command ends alike."""

    status: Status


@dataclass(frozen=True)
class Flaky:
    """With the same fixes, ``ids``, the command ended in two ways."""

    ids: tuple[str, ...]
    statuses: tuple[Status, Status]


Finding = Found | NoDifference | Flaky


def search(candidates: Sequence[str], run: Callable[[tuple[str, ...]], Status]) -> Finding:
    """Find the smallest set of ``candidates`` with which ``run`` gives the status that it gives with all of them.

    ``run`` takes the ids of the fixes that are to be on, in the order of ``candidates``. It is called n * n + 3 * n + 6
    times at most, and about 2 * log2(n) + 6 times where one of n candidates decides.

    >>> search("abcd", lambda ids: 0 if "c" in ids else 1)
    Found(ids=('c',), with_ids=0, without=1, all_but=1)
    """
    everything = tuple(candidates)
    seen: dict[tuple[str, ...], Status] = {}
    # The repetition comes at once: a command that fails every other time would pass for one that a fix decides.
    for ids in (everything, ()):
        seen[ids] = run(ids)
        again = run(ids)
        if again != seen[ids]:
            return Flaky(ids, (seen[ids], again))
    wanted, without = seen[everything], seen[()]
    if wanted == without:
        return NoDifference(wanted)

    def suffices(ids: tuple[str, ...]) -> bool:
        if ids not in seen:
            seen[ids] = run(ids)
        return seen[ids] == wanted

    found = _minimise(everything, suffices)
    again = run(found)
    if again != wanted:
        return Flaky(found, (wanted, again))
    rest = tuple(id for id in everything if id not in found)
    all_but = run(rest)
    if all_but != seen.get(rest, all_but):
        return Flaky(rest, (seen[rest], all_but))
    return Found(found, wanted, without, all_but)


def _minimise(ids: tuple[str, ...], suffices: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """Delta debugging (Zeller and Hildebrandt's ddmin): a subset that suffices, and without any one id does not."""
    parts = 2
    while len(ids) > 1:
        chunks = [ids[len(ids) * i // parts : len(ids) * (i + 1) // parts] for i in range(parts)]
        rests = [tuple(id for id in ids if id not in chunk) for chunk in chunks]
        chunk = next((chunk for chunk in chunks if suffices(chunk)), None)
        rest = next((rest for rest in rests if suffices(rest)), None) if chunk is None else None
        if chunk is not None:
            ids, parts = chunk, 2
        elif rest is not None:
            ids, parts = rest, max(parts - 1, 2)
        elif parts < len(ids):
            parts = min(2 * parts, len(ids))
        else:
            break
    return ids


@dataclass(frozen=True)
class Run:
    """One run of the command with the fixes ``ids``; ``output`` is the file with all that it printed."""

    ids: tuple[str, ...]
    status: Status
    seconds: float
    output: Path


def describe(status: Status, timeout: float) -> str:
    """Name a status in the words of the report; ``timeout`` is that of the runs, in seconds.

    >>> describe(1, 60), describe(-11, 60), describe(None, 60)
    ('exit 1', 'SIGSEGV', 'no answer within 60 s')
    """
    if status is None:
        return f"no answer within {timeout:g} s"
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def sentences(finding: Finding, candidates: Sequence[str], timeout: float) -> list[str]:
    """Tell what was found, in a line or more."""
    if isinstance(finding, NoDifference):
        return [f"the fixes make no difference: {describe(finding.status, timeout)} with all and with none"]
    names = " and ".join(finding.ids)
    if isinstance(finding, Flaky):
        some = f"with {names}" if len(finding.ids) < 4 else f"with {len(finding.ids)} of {len(candidates)} fixes"
        where = {(): "without fixes", tuple(candidates): "with all fixes"}.get(finding.ids, some)
        first, second = (describe(status, timeout) for status in finding.statuses)
        return [f"the command is flaky: {where} it gave {first} and then {second}"]
    with_ids, without, all_but = (
        describe(status, timeout) for status in (finding.with_ids, finding.without, finding.all_but)
    )
    lines = [f"without: {without}, with {names}: {with_ids}", f"with all fixes but {names}: {all_but}"]
    if finding.all_but == finding.with_ids:
        lines[1] += f", so {names} is enough, but others do the same"
    elif finding.with_ids != 0 and finding.all_but == 0:
        lines.append(f"{settings.DISABLE}={','.join(finding.ids)} avoids it")
    return lines


def known_so_far(runs: Sequence[Run], timeout: float) -> str:
    """Tell in a sentence what a search that ended early has found."""
    if not runs:
        return "nothing is known yet"
    wanted = runs[0].status
    known = f"with all fixes: {describe(wanted, timeout)}"
    without = [run.status for run in runs if not run.ids]
    if without:
        known += f", without: {describe(without[0], timeout)}"
        if without[0] != wanted:
            enough = min((run.ids for run in runs if run.status == wanted), key=len)
            known += f", enough for {describe(wanted, timeout)}: {' and '.join(enough)}"
    return known


def as_json(finding: Finding, runs: Sequence[Run], timeout: float) -> dict[str, object]:
    """What was found, and every run, as plain dictionaries, lists, strings and numbers."""
    made: dict[str, object]
    if isinstance(finding, NoDifference):
        made = {"verdict": "no difference", "with": finding.status, "without": finding.status}
    elif isinstance(finding, Flaky):
        made = {"verdict": "flaky", "ids": finding.ids, "statuses": finding.statuses}
    else:
        made = {
            "verdict": "found",
            "ids": finding.ids,
            "with": finding.with_ids,
            "without": finding.without,
            "all_but": finding.all_but,
        }
    rows = [
        {"ids": run.ids, "status": run.status, "seconds": round(run.seconds, 1), "output": str(run.output)}
        for run in runs
    ]
    return {**made, "runs": rows}


def output_folder(keep: Path | None, command: str) -> Path:
    """Make the folder ``keep``, or a temporary one named after ``command``. Raises OSError, also if it is not empty."""
    if keep is None:
        return Path(tempfile.mkdtemp(prefix=f"torch-forwardfix-{command}-"))
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(keep))
    return keep


class CannotStart(Exception):
    """The command cannot be started; the message names it and says why."""


class Stopped(Exception):
    """The signal ``number`` came, which ends the search; the command has been stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Put SIGINT, SIGTERM and SIGHUP into a list as they come: none of them ends this process half-way."""
    arrived: list[int] = []
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Whoever starts us may have switched one off, as nohup does.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Bench:
    """Runs ``command`` with chosen fixes of ``candidates``, and keeps the ``runs``.

    What a run prints goes into a file in ``folder``. ``timeout`` is in seconds. ``arrived`` are the signals that came.
    ``tell`` is called with the number of a run, from 1, and the run when it has ended.
    """

    command: Sequence[str]
    candidates: Sequence[str]
    folder: Path
    timeout: float
    shared_caches: bool
    arrived: list[int]
    tell: Callable[[int, Run], None]
    runs: list[Run]

    def run(self, ids: tuple[str, ...]) -> Status:
        """Run the command with the fixes ``ids`` and no other candidate. Raises CannotStart and Stopped."""
        # TORCH_FORWARDFIX_DISABLE is the one switch that can name every set, the empty one too, and leaves all else as
        # in a real run: the hook is armed and makes its plan, and the caches' key holds the fixes that are on.
        switches = settings.disabling(id for id in self.candidates if id not in ids)
        number = len(self.runs) + 1
        output = self.folder / f"{number:02}-with-{len(ids)}.out"
        # What an earlier run has compiled can hide a difference: only fixes that change generated code are in the key.
        own: AbstractContextManager[dict[str, str]] = nullcontext({}) if self.shared_caches else own_caches()
        with own as caches:
            start = monotonic()
            status = run_command(self.command, {**os.environ, **caches, **switches}, output, self.timeout, self.arrived)
            run = Run(ids, status, monotonic() - start, output)
        self.runs.append(run)
        self.tell(number, run)
        return status


def run_command(
    command: Sequence[str], environment: dict[str, str], output: Path, timeout: float, arrived: Sequence[int]
) -> Status:
    """Run a command to its end, at most ``timeout`` seconds, with all that it prints in the file ``output``.

    ``arrived`` are the signals that came. What the command has started and left behind is killed. Raises CannotStart,
    and Stopped after a signal.
    """
    with output.open("wb") as file:
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own: what it has started is stopped with it
            )
        except OSError as error:
            output.unlink()
            raise CannotStart(f"{command[0]!r} cannot be started: {error.strerror or error}") from None
    ended = _ends(process, timeout, arrived)
    if not ended:
        _signal_group(process, signal.SIGINT)
        _ends(process, GRACE_SECONDS, arrived, already=len(arrived))
    # Also what a command that ended by itself left behind: no run is to disturb the next one.
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    status = process.wait()
    if arrived:
        raise Stopped(arrived[0])
    return status if ended else None


def _ends(process: subprocess.Popen[bytes], seconds: float, arrived: Sequence[int], already: int = 0) -> bool:
    """Wait for the end of ``process``: False after ``seconds``, or when more than ``already`` signals have arrived."""
    until = monotonic() + seconds
    while len(arrived) <= already and monotonic() < until:
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(0.1, seconds))
            return True
    return False


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):  # it is gone, or a zombie (macOS)
        os.killpg(process.pid, number)
