"""``Failed to run autotuning code block: name 'get_raw_stream' is not defined`` ends the compile.

With ``triton.autotune_at_compile_time``, which ``standalone_compile`` and so vLLM switches on, inductor writes a block
of code for each graph that runs its kernels once, and executes it. The branches of a ``torch.cond`` are subgraphs with
blocks of their own, and so are products that ``max_autotune`` splits along their inner dimension. Such a block enters
the device first, with ``stream0 = get_raw_stream(0)``; but the import of that name went into the block of the main
graph (vllm#30905: ``compile_sizes`` of Mixtral).

Since 2.10 all blocks begin with the name (and subgraphs have none of their own, pytorch#167131). vLLM puts it into
``builtins``. The patch writes the import before the block of a subgraph enters the device. Blocks of main graphs and of
partitions are left alone, and what the compile generates stays what it is: the blocks are no part of it.
"""

from __future__ import annotations

import ast
import builtins
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

if TYPE_CHECKING:
    from torch_forwardfix import generation

_ENTER = "PythonWrapperCodegen.codegen_device_guard_enter"


def is_present(module: ModuleType) -> bool | str:
    # What upstream repaired it by: the buffers of the main graph, and a header that defines the name.
    subgraph = lookup(module, "SubgraphPythonWrapperCodegen")
    if "generate_and_run_autotune_block" in vars(subgraph):
        return False
    header = lookup(module, "PythonWrapperCodegen.write_kernel_autotune_defs_header")
    texts = [text for code in code_objects(header) for text in code.co_consts if isinstance(text, str)]
    if any("get_raw_stream" in text for text in texts):
        return False
    names = {name for code in code_objects(lookup(module, _ENTER)) for name in code.co_names}
    wanted = {"write_triton_header_once", "is_codegen_graph_partition_subgraph", "kernel_autotune_calls"}
    return wanted <= names or f"{_ENTER} writes the block in another way"


def apply(module: ModuleType) -> None:
    subgraph: Any = module.SubgraphPythonWrapperCodegen
    config: Any = module.config
    is_partition: Any = module.is_codegen_graph_partition_subgraph
    graph: Any = module.V

    def import_first(original: Any) -> Any:
        def codegen_device_guard_enter(self: Any, device_idx: int) -> None:
            if config.triton.autotune_at_compile_time and isinstance(self, subgraph) and not is_partition(self):
                line = graph.graph.device_ops.import_get_raw_stream_as("get_raw_stream")
                if not self.kernel_autotune_calls.contains(line):
                    self.kernel_autotune_calls.writeline(line)
            original(self, device_idx)

        return codegen_device_guard_enter

    wrap(module.PythonWrapperCodegen, "codegen_device_guard_enter", import_first)


def undefined(block: str) -> set[str]:
    """The names that ``block`` uses in an earlier line than it defines them, or defines nowhere."""
    nodes = list(ast.walk(ast.parse(block)))
    first: dict[str, int] = {}
    for node in nodes:
        defined: list[str] = []
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined = [node.id]
        elif isinstance(node, ast.FunctionDef):
            defined = [node.name, *(argument.arg for argument in node.args.args)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        for name in defined:
            first[name] = min(first.get(name, node.lineno), node.lineno)  # type: ignore[attr-defined]
    uses = [node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return {
        node.id
        for node in uses
        if not hasattr(builtins, node.id) and not first.get(node.id, node.lineno + 1) <= node.lineno
    }


def blocks(function: Any, *inputs: Any) -> tuple[list[str], generation.Generated]:
    """The blocks that would be executed while ``function`` is compiled, and what is generated."""
    from unittest import mock

    import torch._inductor.codegen.wrapper as wrapper

    from torch_forwardfix import generation

    written: list[str] = []

    def keep(self: Any) -> None:
        written.append(self.kernel_autotune_defs.getvalue() + "\n" + self.kernel_autotune_calls.getvalue())

    with mock.patch.object(wrapper.PythonWrapperCodegen, "generate_and_run_autotune_block", keep):
        generated = generation.generate(function, *inputs, options={"triton.autotune_at_compile_time": True})
    if not written:
        raise RuntimeError("no block was written")
    return written, generated


def reproduce() -> None:
    import torch

    from torch_forwardfix import generation

    def either(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: (x + 1).relu(), lambda x: (x * 2).sin(), (x,))

    if generation.gpu():
        compiled = torch.compile(either, options={"triton.autotune_at_compile_time": True})
        try:
            compiled(torch.ones(64, 64, device="cuda"))
        except Exception as error:
            if "name 'get_raw_stream' is not defined" in str(error):
                raise BugPresent("the compile ends with NameError: get_raw_stream, when autotuning") from error
            raise
        return
    for block in blocks(either, torch.ones(64, 64))[0]:
        missing = undefined(block)
        if "get_raw_stream" in missing:
            raise BugPresent("the code that autotunes uses get_raw_stream before it is defined")
        if missing:
            raise RuntimeError(f"the code that autotunes uses {missing} before they are defined")


FIX = Fix(
    id="raw-stream-autotune",
    title="autotuning while compiling for a GPU (vLLM's compile_sizes) ends with NameError: get_raw_stream",
    kind="crash",
    upstream=("pytorch/pytorch#167131", "pytorch/pytorch#163707", "vllm-project/vllm#30905", "vllm-project/vllm#30912"),
    affects={"torch": ">=2.9.0.dev0,<2.10.0rc99"},
    fixed_in="2.10.0",
    targets=(f"torch._inductor.codegen.wrapper:{_ENTER}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
