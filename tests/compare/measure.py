"""One case in one process: run it eagerly and compiled, and say what was seen, as a dict of plain values."""

from __future__ import annotations

import gc
import hashlib
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock
from zlib import crc32

import numpy
import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics
from torch._inductor import compile_fx
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering
from torch.utils._pytree import tree_leaves

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Program:
    """What a case does. ``run`` hands what is to be compiled to its argument, and returns the values to compare."""

    run: Callable[[Compiler], list[Any]]
    fullgraph: bool
    # Values that are not defined (torch.empty) are compared by their shapes.
    undefined: bool = False
    # Inductor has a random generator of its own; with this it takes eager's, so that values can be compared.
    eager_random: bool = False


def configure() -> None:
    # The hundred thousands of objects that torch is made of need no looking through again and again.
    gc.freeze()
    torch.set_num_threads(1)
    # Results must come from compilation in this process, and must not depend on what ran before.
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    torch._dynamo.config.automatic_dynamic_local_pgo = False
    torch._inductor.config.compile_threads = 1
    if not torch.cuda.is_available():
        # transformers asks this before every mask; a CUDA build with stubs in CUDA's place does not survive it.
        torch.cuda.graphs._cuda_isCurrentStreamCapturing = lambda: False


def seed(name: str) -> None:
    number = crc32(name.encode())
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def measure(name: str, backend: str, program: Program) -> tuple[dict[str, Any], str]:
    """Return the record of the case, and the code that was generated."""
    began = time.process_time()
    record: dict[str, Any] = {}
    try:
        seed(name)
        expected = program.run(lambda function: function)
    except Exception as error:
        return {"verdict": "error", "detail": f"eager: {first_line(error)}"}, ""
    record["eager"] = digest(expected, program.undefined)
    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    code: list[str] = []
    try:
        with caught_code(code), torch._inductor.config.patch(fallback_random=program.eager_random):
            seed(name)
            values = program.run(lambda f: torch.compile(f, backend=BACKENDS[backend], fullgraph=program.fullgraph))
    except Exception as error:
        record |= {"verdict": "error", "detail": first_line(error)}
    else:
        difference = None if program.undefined else compare(values, expected)
        record |= {"verdict": "mismatch" if difference else "ok", "values": digest(values, program.undefined)}
        if difference:
            record["detail"] = difference
    metrics = get_compilation_metrics()
    record |= {
        "graphs": counters["stats"]["unique_graphs"],
        "calls": counters["stats"]["calls_captured"],
        "breaks": sum(counters["graph_break"].values()),
        "recompiles": sum(1 for metric in metrics if metric.recompile_reason),
    }
    text = "\n".join(map(plain_code, code))
    if backend.startswith("inductor"):
        record["code"] = sha(text.encode())
    record["seconds"] = round(time.process_time() - began, 2)
    return record, text


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {plain(lines[0] if lines else '')[:300]}"


def plain(text: str) -> str:
    """Take out what differs from process to process."""
    text = text.replace(tempfile.gettempdir(), "TMP")
    text = re.sub(r"0x[0-9a-f]{6,}", "0x", text)
    return re.sub(r"(/[\w.+-]+)+/([\w.+-]+)", r"\2", text)


def plain_code(code: str) -> str:
    # Comments name files, and count the graphs that this process has compiled so far.
    return plain(re.sub(r"^\s*# .*\n?|  # .*$", "", code, flags=re.MULTILINE))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def digest(values: list[Any], undefined: bool = False) -> str:
    """The same for the same values, bit by bit; all NaN are alike."""
    state = hashlib.sha256()
    for value in values:
        if not isinstance(value, torch.Tensor):
            state.update(plain(repr(value)).encode())
            continue
        state.update(f"{value.dtype} {tuple(value.shape)} {value.layout}".encode())
        if undefined:
            continue
        value = strided(value)
        state.update(str(value.stride()).encode())
        if value.is_floating_point():
            value = torch.where(value.isnan(), torch.full_like(value, torch.nan), value)
        if value.is_complex():
            value = torch.view_as_real(value)
        state.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def strided(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    if value.layout != torch.strided:
        value = value.to_dense()
    return value.resolve_conj().resolve_neg()


def compare(values: list[Any], expected: list[Any]) -> str | None:
    if len(values) != len(expected):
        return f"{len(values)} values instead of {len(expected)}"
    for index, (value, right) in enumerate(zip(values, expected, strict=True)):
        try:
            if isinstance(right, torch.Tensor):
                tolerance = 1e-3 if right.dtype in (torch.float32, torch.complex64) else None
                torch.testing.assert_close(
                    strided(value), strided(right), rtol=tolerance, atol=tolerance and 1e-4, equal_nan=True
                )
            elif value != right and value == value:
                return f"value {index}: {plain(repr(value))} instead of {plain(repr(right))}"
        except Exception as error:
            return f"value {index}: {first_line(error)}"
    return None


@contextmanager
def caught_code(code: list[str]) -> Iterator[None]:
    with mock.patch.object(GraphLowering, "save_output_code", code.append):
        yield


def generate(graph: Any, inputs: Any) -> Any:
    """Inductor without the C++ compiler: it generates the code of every graph, and the graph runs operation by
    operation in its place. Compiling the kernels of all cases would take hours."""
    return compile_fx.compile_fx(graph, inputs, inner_compile=_generate)


def _generate(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    graph.recompile()
    # Inductor changes the graph that it is given.
    twin = torch.fx.GraphModule(graph, _copy_of(graph.graph))
    with (
        mock.patch.object(AsyncCompile, "cpp_pybinding", _no_kernel),
        mock.patch.object(AsyncCompile, "cpp", _no_kernel),
    ):
        compile_fx.compile_fx_inner(graph, inputs, **options)

    def run(arguments: list[Any]) -> Any:
        taken = list(arguments)
        arguments.clear()
        return twin(*taken)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _copy_of(graph: torch.fx.Graph) -> torch.fx.Graph:
    copy = torch.fx.Graph()
    names: dict[torch.fx.Node, torch.fx.Node] = {}
    output = copy.graph_copy(graph, names)
    copy.output(output)
    return copy


def _no_kernel(*_: Any) -> None:
    return None


BACKENDS: dict[str, Any] = {"aot_eager": "aot_eager", "inductor-code": generate, "inductor-run": "inductor"}


def leaves(value: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(value) if leaf is not None]
