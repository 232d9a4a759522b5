"""Cases from torch's OpInfo database: one sample of every operator, forward and, where it has one, backward."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any
from zlib import crc32

import torch
from measure import Compiler, Program, leaves, seed
from torch.testing._internal import common_methods_invocations
from torch.utils._pytree import tree_map

# One sample each: the first of these that the operator takes.
DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64, torch.float16)
SAMPLES_LOOKED_AT = 12
# So many are compiled with the C++ compiler and run.
RUN = 16
LARGEST = 20_000
UNDEFINED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")


def names() -> list[str]:
    return list(_ops)


def sampled(names: list[str]) -> list[str]:
    """The same few on every release, as far as it has them."""
    return sorted(names, key=lambda name: crc32(name.encode()))[:RUN]


def _name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def _without_seed(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


# torch's own keeps the state of the random generator, which cannot be compiled; here every case is seeded.
common_methods_invocations.wrapper_set_seed = _without_seed

# What runs on a GPU only has no types here; jiterator's operators claim to have some.
_ops = {_name(op): op for op in common_methods_invocations.op_db if op.dtypes and not op.name.startswith("jiterator")}


def program(name: str) -> Program:
    op = _ops[name]
    dtype = next(dtype for dtype in (*DTYPES, *op.dtypes) if dtype in op.dtypes)
    backward = op.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    seed(name)
    # Not op.sample_inputs: it looks at the stack for the name of a test, which takes longer than the rest.
    sample = _choose(islice(op.sample_inputs_func(op, "cpu", dtype, backward), SAMPLES_LOOKED_AT))

    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return op.op(input, *args, **kwargs)

    def run(compile: Compiler) -> list[Any]:
        input, args, kwargs = tree_map(_clone, (sample.input, sample.args, sample.kwargs))
        output = compile(call)(input, args, kwargs)
        outputs = leaves(output)
        # Of some operators (linalg.eig) only a part of the output may be differentiated.
        processed = leaves(sample.output_process_fn_grad(output)) if backward else []
        differentiable = [leaf for leaf in processed if getattr(leaf, "requires_grad", False)]
        wanted = [leaf for leaf in leaves((input, args, kwargs)) if getattr(leaf, "requires_grad", False)]
        gradients: list[Any] = []
        if differentiable and wanted:
            seed(name)
            cotangents = [torch.randn_like(leaf) for leaf in differentiable]
            gradients = leaves(torch.autograd.grad(differentiable, wanted, cotangents, allow_unused=True))
        return outputs + gradients

    return Program(run, fullgraph=True, undefined=op.name in UNDEFINED)


def _choose(samples: Iterable[Any]) -> Any:
    """The first sample whose tensors are neither single numbers nor large, where there is one."""
    first = None
    for sample in samples:
        first = first or sample
        sizes = [leaf.numel() for leaf in leaves((sample.input, sample.args)) if isinstance(leaf, torch.Tensor)]
        if sizes and 1 < max(sizes) <= LARGEST:
            return sample
    return first


def _clone(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)
