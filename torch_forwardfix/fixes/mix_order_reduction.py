"""On a GPU, compiled training has wrong gradients where one kernel sums over rows and over columns at once.

For large inputs (5 million elements; norms and broadcast additions in the backward) inductor sums both ways in one
kernel since 2.10. The sums over rows are made of a workspace afterwards, by a line ``buf = workspace[...].sum(dim=0)``.
Where that buffer is a part of a larger one, as the gradients of slices of one parameter are (``chunk`` of a table of
scales and shifts, ``torch.cat``), the line gives the name to a new tensor, and the part is never written: the gradient
holds what the memory held before. In 2.10 the line also gives a float32 tensor to kernels that read 16 bits, and up to
2.12 a tensor of one row where the sum has another shape, such as ``keepdim`` or a parameter of two dimensions.

Upstream converts the sum since 2.11 (pytorch#190796), gives it its shape since 2.13 (pytorch#177782), and writes it
through the view since 2.15 (pytorch#193061, #193103). The patch rewrites that line alone, as it is written; kernels
stay as they are. It costs one copy of the sum.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_WRITES = "SIMDScheduling._codegen_mix_order_reduction"
_LINE = r"(?P<name>\w+) = (?P<sum>\w+\[.+\]\.view\(.+\)\.\w+\(dim=0.*)"


def is_present(module: ModuleType) -> bool | str:
    code = next(code_objects(lookup(module, _WRITES)))
    if "NonOwningLayout" in code.co_names:
        return False
    if not {"saved_partial_accumulate", "writeline", "allocated"} <= set(code.co_names):
        return f"{_WRITES} no longer writes the last sums"
    return True


def apply(module: ModuleType) -> None:
    from unittest import mock

    import torch
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    def write(wrapper: Any, original: Any, name: str, last_sum: str) -> None:
        buffer = V.graph.get_buffer(name)
        size = [wrapper.codegen_python_sizevar(length) for length in buffer.get_layout().size]
        if isinstance(buffer.get_output_spec(), ir.NonOwningLayout) and name not in V.graph.removed_buffers:
            # Where a reduction was split in two, the view has not been made yet.
            wrapper.codegen_allocation(buffer)
            original(f"{name}.copy_({last_sum}.view([{', '.join(size)}]))")
            return
        row, to, dtype = last_sum.partition(".to(")
        rows = ["1"] if "keepdim=True" in row else []
        if row.count(".view(") == 1 and size[:-1] != rows:
            row += f".view([{', '.join(size)}])"
        if not to and buffer.get_dtype() != torch.float:
            row += f".to({buffer.get_dtype()})"
        original(f"{name} = {row}{to}{dtype}")

    def write_through_views(original: Any) -> Any:
        def _codegen_mix_order_reduction(self: Any, node1: Any, node2: Any) -> Any:
            wrapper = V.graph.wrapper_code
            writeline = wrapper.writeline

            def writeline_with_last_sums(line: Any) -> None:
                found = isinstance(line, str) and re.fullmatch(_LINE, line)
                if found:
                    write(wrapper, writeline, *found.groups())
                else:
                    writeline(line)

            # In 2.10 the original calls itself with the nodes exchanged; a line that is rewritten twice stays as it is.
            with mock.patch.object(wrapper, "writeline", writeline_with_last_sums):
                return original(self, node1, node2)

        return _codegen_mix_order_reduction

    wrap(module.SIMDScheduling, "_codegen_mix_order_reduction", write_through_views)


def reproduce() -> None:
    """On a GPU it compares with eager in float64; without one it reads what is written around the kernel."""
    import torch

    from torch_forwardfix import generation

    def parts(x: torch.Tensor, y: torch.Tensor) -> Any:
        """Sums over columns, and sums over rows that are parts of one result."""
        z = x * y
        return z.sum(1), torch.cat([z.sum(0), x.sum(0)])

    def narrow(x: torch.Tensor, y: torch.Tensor) -> Any:
        """A kernel reads the rounded sums over rows."""
        z = x * y
        return z.float().sum(1), z.sum(0).float() * 2

    def shaped(x: torch.Tensor, y: torch.Tensor) -> Any:
        """The sums over rows have two dimensions."""
        z = x * y
        return z.sum((1, 2)), z.sum(0)

    cases = ((parts, torch.float, [1024]), (narrow, torch.bfloat16, [1024]), (shaped, torch.float, [4, 256]))
    for function, dtype, row in cases:
        x = torch.zeros(8192, *row, dtype=dtype)
        x[::64] = 1
        if generation.gpu():
            wanted = function(x.double(), x.double())
            result = torch.compile(function)(x.cuda(), x.cuda())
            # Sums of few ones are exact in any order and type.
            if not all(
                torch.equal(got.cpu().double(), want.double()) for got, want in zip(result, wanted, strict=True)
            ):
                raise BugPresent("sums over rows and columns at once are wrong")
            continue
        text = generation.generate(function, x, x).wrappers[0]
        lines = [line.strip() for line in text.splitlines() if re.search(r"\w\[.+\]\.view\(.+\.sum\(dim=0", line)]
        if function is parts and any(" = " in line for line in lines):
            raise BugPresent(f"a part of the result is never written, a new tensor gets its name: {lines[0]}")
        if function is narrow and any(".to(torch.bfloat16)" not in line for line in lines):
            raise BugPresent(f"a kernel reads float32 as bfloat16: {lines[0]}")
        if function is shaped and any(".view([4, 256])" not in line for line in lines):
            raise BugPresent(f"a result has another shape than in eager: {lines[0]}")


FIX = Fix(
    id="mix-order-reduction",
    title="on a GPU, gradients of slices of one parameter are uninitialized memory for large inputs",
    kind="wrong-result",
    upstream=(
        "pytorch/pytorch#193061",
        "pytorch/pytorch#193103",
        "pytorch/pytorch#190796",
        "pytorch/pytorch#177782",
    ),
    affects={"torch": ">=2.10.0.dev0,<2.15.0rc99"},
    fixed_in="2.15.0",
    targets=(f"torch._inductor.codegen.simd:{_WRITES}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
