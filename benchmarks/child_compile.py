"""The first torch.compile call of a process, and what of it is ours: loading the engine, gates, probes and patches.

Prints JSON, in seconds.
"""

import json
import sys
import time

import torch

ours = {"engine": 0.0, "gates": 0.0, "patches": 0.0}
running = []


def timed(part, function):
    def wrapper(*arguments, **options):
        running.append(part)
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            running.pop()
            # What runs inside another part of ours is counted there.
            if not running:
                ours[part] += time.perf_counter() - start

    return wrapper


boot = sys.modules.get("torch_forwardfix")
if boot is not None and boot.watcher in sys.meta_path:
    start = time.perf_counter()
    from torch_forwardfix import engine

    ours["engine"] = time.perf_counter() - start
    engine.take_over = timed("gates", engine.take_over)
    engine._module_loaded = timed("patches", engine._module_loaded)


def program(x, y):
    return torch.softmax(x @ y, dim=-1).relu() + x.mean()


x = torch.ones(8, 8)
start = time.perf_counter()
torch.compile(program)(x, x)
seconds = time.perf_counter() - start
applied = sum(row.state == "applied" for row in boot.status()) if boot is not None else 0
print(json.dumps({"seconds": seconds, "applied": applied, **ours}))
