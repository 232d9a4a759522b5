"""What is measured with: instructions of a process, wall times of several in turn, and this machine in words."""

from __future__ import annotations

import datetime
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A process to measure: its arguments, and what it has in its environment beside what all have."""

    arguments: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *under: str, quiet: bool = False, well: Collection[int] = (0,)) -> str:
        """Run it and return what it printed, errors too unless ``quiet``.

        Raises RuntimeError where its exit status is not one of ``well``.
        """
        foreign = ("PYTHON", "TORCH", "AUTOWRAPT", "COVERAGE", "VIRTUAL_ENV")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        done = subprocess.run(
            [*under, *map(str, self.arguments)],
            env={**inherited, "PYTHONHASHSEED": "0", **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
            text=True,
        )
        if done.returncode not in well:
            raise RuntimeError(f"{' '.join(map(str, self.arguments))} ended with {done.returncode}\n{done.stdout}")
        return done.stdout


def counter() -> str:
    """Return what counts instructions here: ``callgrind`` if there is valgrind, else ``perf``."""
    if shutil.which("valgrind"):
        return "callgrind"
    events = ["perf", "stat", "-x,", "-e", "instructions:u", "true"]
    if shutil.which("perf") and re.search(r"^\d+,", subprocess.run(events, capture_output=True, text=True).stderr):
        return "perf"
    raise RuntimeError("instructions cannot be counted here: install valgrind, or perf on a machine whose CPU counts")


def instructions(command: Command) -> int:
    """Count the instructions of a second run: the first may have written bytecode."""
    command.run()
    if counter() == "perf":
        return int(re.findall(r"^(\d+),", command.run("perf", "stat", "-x,", "-e", "instructions:u"), re.MULTILINE)[-1])
    printed = command.run("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    return int(re.findall(r"Collected : (\d+)", printed)[-1])


def take_turns(commands: Mapping[str, Command], rounds: int) -> dict[str, Figures]:
    """Time the commands in turn, each once a round, and compare each with the first of them, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        command.run()
    # None of them always runs after the same one: what a process leaves in the CPU's caches costs the next.
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(commands), len(commands)):
            start = time.perf_counter()
            commands[name].run()
            seconds[name].append(time.perf_counter() - start)
    return compare(seconds)


def compare(seconds: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Return median seconds, and the ratio to the first of them in the same round: median and quartiles."""
    first = next(iter(seconds.values()))
    found = {}
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        found[name] = {
            "rounds": len(values),
            "seconds": significant(statistics.median(values)),
            "ratio": significant(middle),
            "quartiles": [significant(low), significant(high)],
        }
    return found


def significant(value: float) -> float:
    return float(f"{value:.5g}")


def machine() -> Figures:
    model = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if os.path.exists("/proc/cpuinfo")
        else None
    )
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "load": significant(os.getloadavg()[0]),
    }
