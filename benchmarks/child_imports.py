"""Imports of trivial modules with the finders of this environment, and without them.

usage: python child_imports.py FOLDER with|without|both ROUNDS [MODULE ...]

The MODULEs are imported first. ``both`` imports each module in either way, in turn, and prints JSON: what the finders
are called, and the seconds of each import.
"""

import gc
import importlib
import sys
import time
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

folder, which, rounds, *first = sys.argv[1:]
for name in first:
    importlib.import_module(name)
found = sys.meta_path[:]
own = [finder for finder in found if finder in (BuiltinImporter, FrozenImporter, PathFinder)]
arms = {"without": own, "with": found}
sys.path.insert(0, folder)
names = [f"trivial_{number}" for number in range(500)]
gc.disable()


def measure(name, finders):
    sys.meta_path[:] = finders
    start = time.perf_counter()
    __import__(name)
    seconds = time.perf_counter() - start
    del sys.modules[name]
    return seconds


if which == "both":
    seconds = {arm: [] for arm in arms}
    for turn in range(int(rounds) + 1):
        for name in names:
            for arm in ("without", "with") if turn % 2 else ("with", "without"):
                taken = measure(name, arms[arm])
                if turn:  # the first may write bytecode
                    seconds[arm].append(taken)
    import json

    kinds = [getattr(finder, "__name__", type(finder).__name__) for finder in found if finder not in own]
    print(json.dumps({"finders": kinds, **seconds}))
else:
    for _ in range(int(rounds)):
        for name in names:
            measure(name, arms[which])
