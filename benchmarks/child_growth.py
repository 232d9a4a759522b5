"""How the time of a compile grows with the size of a program, for the fixes of kind ``startup``.

usage: python child_growth.py ID SIZE

Prints JSON: what is counted, how often it was seen, and the seconds of the compile.
"""

import json
import sys
import time

import torch
import torch._dynamo
import torch._inductor.compile_fx

identity = "torch_forwardfix_growth"


def count(kind, method="__str__"):
    """Have ``kind`` note each call of ``method`` in the list that is returned."""
    calls = []
    original = getattr(kind, method)

    def counted(self, *arguments, **options):
        calls.append(1)
        return original(self, *arguments, **options)

    setattr(kind, method, counted)
    return calls


def implicit_fallback_stringify(size):
    """Custom operators, each of which takes the result of the one before twice, as a residual connection does."""
    library = torch.library.Library(identity, "FRAGMENT")
    for number in range(size):
        library.define(f"add_{number}(Tensor x, Tensor y) -> Tensor")
        library.impl(f"add_{number}", torch.Tensor.add, "CompositeExplicitAutograd")
    ops = [getattr(getattr(torch.ops, identity), f"add_{number}") for number in range(size)]

    def chain(x):
        for op in ops:
            x = op(x, x)
        return x

    nodes = [kind for kind in vars(torch._inductor.ir).values() if isinstance(kind, type)]
    rendered = [count(kind) for kind in nodes if kind.__module__ == "torch._inductor.ir" and "__str__" in vars(kind)]
    compiled = torch.compile(chain, fullgraph=True)
    start = time.perf_counter()
    compiled(torch.ones(3))
    return "texts of IR nodes", sum(map(len, rendered)), time.perf_counter() - start


def guard_tensor_repr(size):
    """A step of AdamW with so many parameters."""
    printed = count(torch.Tensor, "__repr__")
    weights = [torch.nn.Parameter(torch.ones(256, 256)) for _ in range(size)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    compiled = torch.compile(torch.optim.AdamW(weights).step, backend="eager")
    start = time.perf_counter()
    compiled()
    return "tensors printed", len(printed), time.perf_counter() - start


def slice_recompile(size):
    """Slices of so many lengths, compared with None."""
    torch._dynamo.config.recompile_limit = size + 1
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def first(x, length):
        key = slice(length)
        return x if key is None else x[key] * 2

    x = torch.ones(size + 5)
    start = time.perf_counter()
    for length in range(4, size + 4):
        first(x, length)
    return "graphs compiled", len(graphs), time.perf_counter() - start


id, size = sys.argv[1], int(sys.argv[2])
what, seen, seconds = globals()[id.replace("-", "_")](size)
print(json.dumps({"what": what, "count": seen, "seconds": seconds}))
