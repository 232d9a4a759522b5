"""With triton 3.6 or later, torch 2.9 ends with "'KernelMetadata' object has no attribute 'cluster_dims'".

To start a compiled kernel, inductor writes a function that knows its grid and arguments. What it collects for that
includes ``num_ctas`` and ``cluster_dims``, of the kernel or of its metadata, although only triton older than 3.0 takes
them as arguments. Triton 3.6 has no ``cluster_dims`` any more. Kernels that torch's own launcher starts are spared; all
that go through triton's, those of users first, end the compile.

Upstream asks whether there is such an attribute since 2.10 (pytorch#167187); unsloth gives each kernel the two. So does
the patch, just before inductor reads them: ``num_ctas`` of the metadata, and the ``cluster_dims`` that triton 3.6
launches with. A kernel that has one of the two is left alone. Where triton is, the bug shows on any machine: triton
compiles for a GPU without one.
"""

from __future__ import annotations

import dis
from importlib import import_module
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_MAKE = "TritonCompileResult.make_launcher"


def is_present(module: ModuleType) -> bool | str:
    code = next(code_objects(lookup(module, _MAKE)))
    if "cluster_dims" not in code.co_names:
        return False  # the metadata are not asked for it
    # Once for the kernel; upstream's repair asks for that of the metadata by hasattr.
    asked = [step for step in dis.get_instructions(code) if step.argval == "cluster_dims" and "CONST" in step.opname]
    if len(asked) not in (1, 2):
        return f"{_MAKE} names cluster_dims {len(asked)} times"
    return len(asked) == 1


def apply(module: ModuleType) -> None:
    def complete_the_kernel(original: Any) -> Any:
        def make_launcher(self: Any) -> Any:
            kernel: Any = self.kernel
            metadata = getattr(kernel, "metadata", None)
            if metadata is not None and not hasattr(kernel, "num_ctas") and not hasattr(metadata, "cluster_dims"):
                number = getattr(metadata, "num_ctas", 1)
                kernel.cluster_dims = (number, 1, 1)
                kernel.num_ctas = number
            return original(self)

        return make_launcher

    wrap(module.TritonCompileResult, "make_launcher", complete_the_kernel)


def launcher() -> tuple[Any, list[Any]]:
    """What inductor makes of a kernel that triton has compiled for an H100, and the list of what it is called with."""
    from torch._inductor.runtime import triton_heuristics

    triton: Any = import_module("triton")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)

    @triton.jit  # type: ignore[misc, unused-ignore]
    def kernel(pointer, number):  # type: ignore[no-untyped-def]
        pass

    signature = {"pointer": "*fp32", "number": "i32"}
    binary = triton.compile(triton.compiler.ASTSource(kernel, signature), target=target)
    calls: list[Any] = []
    # As if it were loaded, for which a driver is needed.
    binary.module = binary.function = object()
    binary._run = lambda *arguments: calls.append(arguments)
    result = triton_heuristics.TritonCompileResult(
        binary,
        triton_heuristics.Config({}, num_warps=4, num_stages=1),
        {"signature": signature, "constants": {}},
        {"grid_type": "FixedGrid", "fixed_grid": ["2", "3", "4"], "extra_launcher_args": [], "kernel_name": "kernel"},
    )
    return result.make_launcher(), calls


def reproduce() -> None:
    try:
        launch, calls = launcher()
    except AttributeError as error:
        if "has no attribute 'cluster_dims'" in str(error):
            raise BugPresent(f"no kernel can be started: {error}") from error
        raise
    launch("pointer", 5, stream=7)
    if len(calls) != 1 or calls[0][:4] != (2, 3, 4, 7) or calls[0][-2:] != ("pointer", 5):
        raise RuntimeError(f"the kernel was started with {calls}")


FIX = Fix(
    id="triton-kernel-attrs",
    title="with triton 3.6 or later, compiled kernels end with AttributeError: cluster_dims",
    kind="crash",
    upstream=("pytorch/pytorch#167187", "pytorch/pytorch#192409", "unslothai/unsloth#4001"),
    affects={"torch": ">=2.9.0.dev0,<2.10.0rc99", "triton": ">=3.6.0.dev0"},
    fixed_in="2.10.0",
    targets=(f"torch._inductor.runtime.triton_heuristics:{_MAKE}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
