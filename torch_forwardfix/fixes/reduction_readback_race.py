"""On a GPU, compiled norms and softmaxes of long rows read what another warp has not yet written.

Where a row is too long for one block, the kernel passes over it in loops. A value that the first loop makes and that is
a result as well is stored there, and the next loop reads it back from memory. Nothing makes that loop wait until all
warps have stored: where triton lays the two accesses out differently, a warp reads an element before the warp that
writes it has come that far. The result is wrong now and then (seen in a LayerNorm of float16 after a ``cat``).

Upstream writes ``tl.debug_barrier()`` before such a load since 2.14 (pytorch#190517, #190519). The patch does the same
in the same place: where ``load`` asks for the lines to write to. It costs one barrier in each turn of the second loop.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_LOAD = "TritonKernel.load"
_LINES = "TritonKernel.get_load_buffer"


def is_present(module: ModuleType) -> bool | str:
    load = next(code_objects(lookup(module, _LOAD)))
    if "invalidated_stores" in load.co_names:
        return False
    lookup(module, _LINES)
    return "get_load_buffer" in load.co_names or f"{_LOAD} no longer asks {_LINES}"


def apply(module: ModuleType) -> None:
    from torch._inductor.virtualized import V

    def say_what_is_read_back(original: Any) -> Any:
        def load(self: Any, name: str, index: Any) -> Any:
            stored = name in self.cse.invalidated_stores and V.graph.get_current_device_or_throw().type != "cpu"
            self._reads_back = name if stored else None
            try:
                return original(self, name, index)
            finally:
                self._reads_back = None

        return load

    def wait_for_all_warps(original: Any) -> Any:
        def get_load_buffer(self: Any, *arguments: Any, **named: Any) -> Any:
            lines = original(self, *arguments, **named)
            if getattr(self, "_reads_back", None):
                lines.writeline(module.DeferredLine(self._reads_back, "tl.debug_barrier()"))
                self._reads_back = None  # block pointers ask twice
            return lines

        return get_load_buffer

    wrap(module.TritonKernel, "load", say_what_is_read_back)
    wrap(module.TritonKernel, "get_load_buffer", wait_for_all_warps)


def reproduce() -> None:
    """It reads the kernel on a machine with a GPU too, after it has run: the race may never be lost on that GPU."""
    import torch
    from torch._inductor.utils import run_and_get_code

    from torch_forwardfix import generation

    def shares(x: torch.Tensor) -> Any:
        y = x.sin() + 2
        return y, y / y.sum(-1, keepdim=True)

    x = torch.ones(4096, 4000)
    if generation.gpu():
        with torch._inductor.config.patch(force_disable_caches=True):  # what comes from a cache has no code to read
            _, texts = run_and_get_code(torch.compile(shares), x.cuda())
    else:
        texts = [kernel.source for kernel in generation.generate(shares, x).kernels]
    if any(reads_back_at_once(text) for text in texts):
        raise BugPresent("a loop reads what the loop before it stored, without a barrier in between")


def reads_back_at_once(source: str) -> bool:
    """Whether a kernel loads what it has stored, and no barrier is written in between."""
    stored: set[str] = set()
    for line in source.splitlines():
        if "tl.debug_barrier()" in line or line.startswith("def "):
            stored.clear()
        if "tl.load(" in line and line.partition("tl.load(")[2].partition(" ")[0] in stored:
            return True
        if "tl.store(" in line:
            stored.add(line.partition("tl.store(")[2].partition(" ")[0])
    return False


FIX = Fix(
    id="reduction-readback-race",
    title="on a GPU, compiled norms and softmaxes of long rows read elements before they are written",
    kind="wrong-result",
    upstream=("pytorch/pytorch#190517", "pytorch/pytorch#190519"),
    affects={"torch": ">=2.9.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch._inductor.codegen.triton:{_LOAD}", f"torch._inductor.codegen.triton:{_LINES}"),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
