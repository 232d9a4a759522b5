"""Is a warm start warm? A script, or a model of ours, started cold and warm, without the fixes and with them.

Every start is a fresh process. The cold one has empty compile caches, the warm one those that the cold one left. The
counts are torch's own, taken when the process ends.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from . import settings
from .bisect import Status, describe, run_command
from .verify import own_caches

# The names in startup_models.MODELS, which cannot be asked without importing torch.
MODELS = ("llama", "qwen3", "deepseek", "glm")

# These loggers say why a cache was bypassed, in lines at level INFO.
_LOGGERS = ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache")


@dataclass(frozen=True)
class Target:
    """What is started: a model of ours, a script or, with ``module``, what ``python -m`` would run."""

    name: str
    arguments: tuple[str, ...] = ()
    module: bool = False

    @property
    def model(self) -> bool:
        return self.name in MODELS and not self.module and not self.arguments


@dataclass(frozen=True)
class Counts:
    """What torch counted in one process.

    ``captured`` are graphs that Dynamo made, ``compiled`` those that Inductor generated code for. ``fx`` and ``aot``
    are the hits, misses and bypasses of the FX graph cache and the AOTAutograd cache; ``reasons`` says why one was
    bypassed, and how often. ``artifacts`` is what startup_models counted. ``fixes`` is how many were applied.
    """

    torch: str
    fixes: int
    captured: int = 0
    compiled: int = 0
    fx: Mapping[str, int] = field(default_factory=dict)
    aot: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    artifacts: Mapping[str, int] = field(default_factory=dict)

    @property
    def anew(self) -> bool:
        """Whether anything was compiled that no cache gave."""
        return bool(
            self.compiled or any(cache.get(what) for cache in (self.fx, self.aot) for what in ("miss", "bypass"))
        )


@dataclass(frozen=True)
class Run:
    """One start; ``output`` is the file with all that it printed, ``counts`` is None where none were handed over."""

    with_fixes: bool
    warm: bool
    status: Status
    seconds: float
    counts: Counts | None
    output: Path

    @property
    def label(self) -> str:
        return f"{'with' if self.with_fixes else 'without'}, {'warm' if self.warm else 'cold'}"

    def as_json(self) -> dict[str, object]:
        """The start as plain dictionaries, strings and numbers."""
        counts = None if self.counts is None else asdict(self.counts)
        return {
            "with": self.with_fixes,
            "warm": self.warm,
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "counts": counts,
            "output": str(self.output),
        }


def measure(target: Target, folder: Path, arrived: Sequence[int], tell: Callable[[Run], None]) -> list[Run]:
    """Start ``target`` four times: cold and warm without the fixes, cold and warm with them.

    What it prints goes into files in ``folder``. ``tell`` is called after each start. The first one that fails is the
    last. Raises bisect's CannotStart, and Stopped after a signal, which comes into ``arrived``.
    """
    runs: list[Run] = []
    for with_fixes in (False, True):
        with own_caches() as caches:
            for warm in (False, True):
                runs.append(_start(target, folder, with_fixes, warm, caches, arrived))
                tell(runs[-1])
                if runs[-1].status != 0:
                    return runs
    return runs


def _start(
    target: Target, folder: Path, with_fixes: bool, warm: bool, caches: Mapping[str, str], arrived: Sequence[int]
) -> Run:
    fixes, start = "with" if with_fixes else "without", "warm" if warm else "cold"
    name = f"{Path(target.name).name.removesuffix('.py')}-{fixes}-{start}"
    output, answer = folder / f"{name}.out", folder / f"{name}.json"
    kind = "model" if target.model else "module" if target.module else "script"
    command = [sys.executable, "-c", "from torch_forwardfix.startup import child; child()"]
    command += [str(answer.resolve()), kind, target.name, *target.arguments]
    environment = {**os.environ, **caches}
    if with_fixes:
        environment.pop(settings.SWITCH, None)
    else:
        environment[settings.SWITCH] = "0"
    begin = monotonic()
    status = run_command(command, environment, output, math.inf, arrived)
    seconds = monotonic() - begin
    counts = Counts(**json.loads(answer.read_text("utf-8"))) if answer.exists() else None
    answer.unlink(missing_ok=True)
    return Run(with_fixes, warm, status, seconds, counts, output)


def problem(runs: Sequence[Run]) -> str | None:
    """Say in a sentence why the warm start with the fixes is not warm; None where it is."""
    last = runs[-1]
    if last.status != 0:
        return f"the start {last.label} ended with {describe(last.status, math.inf)}"
    if last.counts is None:
        return f"the start {last.label} handed over no counts: its process ended without Python's clean-up"
    cold = next(run for run in runs if run.with_fixes and not run.warm)
    if cold.counts is None or not (cold.counts.anew or last.counts.anew):
        return "nothing was compiled in the process that was started, so there is no answer"
    if not last.counts.anew:
        return None
    caches = {"FX graph cache": last.counts.fx, "AOTAutograd cache": last.counts.aot}
    said = [f"{name}: misses {cache['miss']}, bypasses {cache['bypass']}" for name, cache in caches.items()]
    return f"the warm start compiles; graphs compiled: {last.counts.compiled}; {'; '.join(said)}"


def table(runs: Sequence[Run]) -> list[str]:
    """The starts as lines of text, and below them why the last one bypassed a cache."""
    columns = "hit  miss  bypass"
    lines = [
        f"{'':<43}{'FX graph cache':<22}{'AOTAutograd cache':<22}artifacts",
        f"{'':<14}{'seconds':>8}{'graphs':>8}{'compiled':>10}   {2 * f'{columns:<22}'}saved  loaded",
    ]
    for run in runs:
        line = f"{run.label:<14}{run.seconds:>8.1f}"
        if run.counts is not None:
            caches = [f"{c['hit']:>3}{c['miss']:>6}{c['bypass']:>8}" for c in (run.counts.fx, run.counts.aot)]
            made = run.counts.artifacts
            saved = f"{made['saved']:>5}{made['loaded']:>8}" if made else "    -       -"
            line += f"{run.counts.captured:>8}{run.counts.compiled:>10}   {caches[0]:<22}{caches[1]:<22}{saved}"
        lines.append(line)
    for reason, times in (runs[-1].counts.reasons if runs[-1].counts is not None else {}).items():
        lines.append(f"{reason}{f' ({times} times)' if times > 1 else ''}")
    return lines


def last_lines(output: Path, count: int = 10) -> list[str]:
    """Return the end of what a start has printed."""
    return output.read_text("utf-8", errors="replace").splitlines()[-count:]


def child() -> None:
    """Run the target as Python would, and hand the counts over when the process ends."""
    import atexit
    import runpy

    answer, kind, name = sys.argv[1:4]
    reasons: dict[str, int] = {}
    artifacts: dict[str, int] = {}
    _listen(reasons)
    # The first to register is the last to run: what the script does at its end is counted.
    atexit.register(lambda: Path(answer).write_text(json.dumps(_counts(reasons, artifacts)), "utf-8"))
    sys.argv[:] = sys.argv[3:]
    if kind == "model":
        from .startup_models import start

        artifacts.update(start(name, Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "pieces")))
    elif kind == "module":
        sys.path[0] = os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(name).resolve().parent)
        runpy.run_path(name, run_name="__main__")


def _listen(reasons: dict[str, int]) -> None:
    """Collect why caches are bypassed. Nobody sees a line of the log that would not be there without us."""
    import logging

    def note(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Bypassing"):
            reason = message.strip().splitlines()[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        parent = logging.getLogger(record.name).parent
        return parent is None or record.levelno >= parent.getEffectiveLevel()

    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addFilter(note)


def _counts(reasons: dict[str, int], artifacts: dict[str, int]) -> dict[str, Any]:
    from . import report

    status = report.collect()
    utils: Any = sys.modules.get("torch._dynamo.utils")
    counters: Mapping[str, Mapping[str, int]] = getattr(utils, "counters", {})
    times: Mapping[str, Sequence[float]] = getattr(utils, "compilation_time_metrics", {})

    def cache(group: str, prefix: str) -> dict[str, int]:
        seen = counters.get(group, {})
        return {what: seen.get(f"{prefix}_{what}", 0) for what in ("hit", "miss", "bypass")}

    aot = cache("aot_autograd", "autograd_cache")
    aot |= {what: counters.get("aot_autograd", {}).get(name, 0) for what, name in _AOT_TOTALS.items()}
    return {
        "torch": status.torch or "",
        "fixes": sum(fix.state == "applied" for fix in status.fixes),
        "captured": counters.get("stats", {}).get("unique_graphs", 0),
        # One entry for each graph that was lowered, from whatever cache it was missing and also where there is none.
        "compiled": len(times.get("GraphLowering.run", ())),
        "fx": cache("inductor", "fxgraph_cache"),
        "aot": aot,
        "reasons": reasons,
        "artifacts": artifacts,
    }


_AOT_TOTALS = {"saved": "autograd_cache_saved", "total": "total"}
