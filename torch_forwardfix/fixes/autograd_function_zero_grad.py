"""Gradients of an ``autograd.Function`` are silently zero.

In 2.11 the graph of the traced forward returns all of its intermediates along with the result, so that those which the
forward stored somewhere else can be used outside. An in-place operation (``y += 1``, ``out=``), and likewise one that
returns its input (``contiguous``, ``to``), makes a second variable of the same tensor. If that tensor is the result, it
was returned twice. Autograd remembers for a tensor one output number, the last: the gradient went to the slot of the
copy, which no backward reads, and the user's backward got zeros.

Upstream (pytorch#180642, fixed by #180921 and #180964) leaves out all intermediates that share memory with an input or
an output; a program that keeps one of them, say in a list, dies of "referenced nonexistent value" in 2.12. The patch
leaves out only the same tensor, and lets its other variables name the output that is returned. So it can still be used
outside, and receives gradients there as it does in eager.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_TRACE = "AutogradFunctionApplyVariable.trace_forward_graph"
_COLLECT = "collect_intermediate_outputs"
_REBIND = "overwrite_tensor_vt_proxy"
_FILTER = "filter_aliased_intermediates"
_HOP = "autograd.Function"


def is_present(module: ModuleType) -> bool | str:
    if "trace_forward_graph" not in vars(lookup(module, "AutogradFunctionApplyVariable")):
        return False  # 2.10 and before: the graph returns no intermediates
    codes = list(code_objects(lookup(module, _TRACE)))
    keywords = {name for code in codes for names in code.co_consts if isinstance(names, tuple) for name in names}
    if _FILTER in keywords:
        return False
    if "allow_side_effects" not in keywords:
        return f"{_TRACE} no longer asks for intermediates"
    if lookup(module, _COLLECT).__code__.co_varnames[:4] != ("tx", "subtracer", "graph_output_vts", _FILTER):
        return f"{_COLLECT} has other parameters"
    if lookup(module, _REBIND).__code__.co_varnames[:2] != ("graph_output_vts", "flat_variable"):
        return f"{_REBIND} has other parameters"
    return True


def apply(module: ModuleType) -> None:
    # From a variable that the traced forward returns to the other variables of the same tensor.
    twins: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    def tensor_of(variable: Any) -> Any:
        return variable.as_proxy().node.meta.get("example_value") if variable.is_tensor() else None

    def leave_out_twins(original: Any) -> Any:
        def collect_intermediate_outputs(tx: Any, subtracer: Any, graph_output_vts: Any, *rest: Any, **kw: Any) -> Any:
            extras = original(tx, subtracer, graph_output_vts, *rest, **kw)
            if subtracer.source_target != _HOP:
                return extras
            outputs = {id(tensor): vt for vt in graph_output_vts if (tensor := tensor_of(vt)) is not None}
            kept = []
            for extra in extras:
                output = outputs.get(id(tensor_of(extra)))
                if output is None:
                    kept.append(extra)
                else:
                    twins.setdefault(output, []).append(extra)
            return kept

        return collect_intermediate_outputs

    def rebind_twins(original: Any) -> Any:
        def overwrite_tensor_vt_proxy(graph_output_vts: Any, flat_variable: Any) -> None:
            original(graph_output_vts, flat_variable)
            if not twins:
                return
            for output, result in zip(graph_output_vts, flat_variable.items, strict=False):
                for twin in twins.pop(output, ()):
                    twin.proxy = result.proxy
                    twin.requires_grad = result.requires_grad
                    twin.has_grad_fn = twin.has_grad_fn or result.requires_grad

        return overwrite_tensor_vt_proxy

    wrap(module, _COLLECT, leave_out_twins)
    wrap(module, _REBIND, rebind_twins)


def reproduce() -> None:
    import torch

    class Affine(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y += 1
            return y

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2

    def gradient(function: Any) -> torch.Tensor:
        x = torch.arange(4.0, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(function(x).sum(), x)[0]

    eager = gradient(Affine.apply)
    compiled = gradient(torch.compile(lambda x: Affine.apply(x), backend="aot_eager"))
    if not torch.equal(compiled, eager):
        raise BugPresent(f"the compiled gradient {compiled.tolist()} differs from eager {eager.tolist()}")


FIX = Fix(
    id="autograd-function-zero-grad",
    title="gradients of an autograd.Function are silently zero where its forward has an in-place operation",
    kind="wrong-result",
    upstream=("pytorch/pytorch#180642", "pytorch/pytorch#180921", "pytorch/pytorch#180964"),
    affects={"torch": ">=2.11.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(
        f"torch._dynamo.variables.higher_order_ops:{_COLLECT}",
        f"torch._dynamo.variables.higher_order_ops:{_REBIND}",
    ),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
