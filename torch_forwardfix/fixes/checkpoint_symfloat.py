"""Two checkpointed regions that read the same changing Python float do not compile.

From its second value on, a Python float (an argument, ``module.scale``, the ``eps`` of a norm) is traced as a symbol:
dynamo makes a tensor of it, an input of the whole graph, and takes its ``item()``, once for all that read it. But the
``item()`` goes into the graph that is being traced when the float is met first. Where that is the body of a
``torch.utils.checkpoint`` or of another higher-order operator, a second body cannot reach it: AssertionError
``lift_tracked_freevar_to_input should not be called on root SubgraphTracer``. Nor can the code after the body: its
node's argument "does not belong to this Graph", or up to 2.12 is a "nonexistent value" for the back end.

Upstream takes the ``item()`` in the outermost graph (pytorch#193194, #193254). That passes a number where it passed a
tensor, and ``flex_attention``, ``while_loop`` and ``cond`` do not take one. So the patch leaves the first ``item()``
where it is and takes another one, of the same tensor, where the first is out of reach: only what failed changes.
"""

from __future__ import annotations

import dis
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_WRAP = "VariableBuilder.wrap_symfloat"
_AS_PROXY = "SymNodeVariable.as_proxy"
# On the proxy of an item() that was taken in a body: the proxy of the tensor that it was taken of.
_TENSOR = "_torch_forwardfix_tensor"
_ERRORS = (
    "lift_tracked_freevar_to_input should not be called on root",
    "does not belong to this Graph",
    "referenced nonexistent value",
)


def is_present(module: ModuleType) -> bool | str:
    if not any("proxy" in code.co_names for code in code_objects(lookup(module, _AS_PROXY))):
        return f"{_AS_PROXY} no longer hands out a proxy"
    instructions = dis.get_instructions(lookup(module, _WRAP))
    attributes = [each.argval for each in instructions if each.opname in ("LOAD_ATTR", "LOAD_METHOD")]
    if attributes.count("create_proxy") != 1 or not {"root_tracer", "unspec_variable_map"}.issubset(attributes):
        return f"{_WRAP} no longer makes an input of the outermost graph and takes its item()"
    asked = attributes[attributes.index("create_proxy") - 1]
    if asked == "output":
        return True
    return False if asked == "root_tracer" else f"{_WRAP} asks {asked} to take the item() of a float"


def apply(module: ModuleType) -> None:
    wrap(module.VariableBuilder, "wrap_symfloat", _note_tensor)
    wrap(module.SymNodeVariable, "as_proxy", _within_reach)


def _note_tensor(original: Any) -> Any:
    def wrap_symfloat(self: Any, value: Any) -> Any:
        result = original(self, value)
        output = self.tx.output
        tensor = output.unspec_variable_map.get(self.name)
        # Without a tensor the float is a constant, and the second time it is the tensor that comes back.
        if tensor is not None and tensor is not result and not output.is_root_tracer():
            vars(result.proxy)[_TENSOR] = tensor.proxy
        return result

    return wrap_symfloat


def _within_reach(original: Any) -> Any:
    def as_proxy(self: Any) -> Any:
        proxy = original(self)
        tensor = getattr(proxy, "__dict__", {}).get(_TENSOR)
        if tensor is None:
            return proxy
        output = tensor.tracer.output_graph
        if not any(proxy.tracer is tracer for tracer in output.tracers):  # the body that it is in has been left
            another = output.create_proxy("call_method", "item", (tensor,), {})
            another.node.meta["example_value"] = proxy.node.meta["example_value"]
            vars(another)[_TENSOR] = tensor
            self.proxy = another
        return self.proxy

    return as_proxy


def reproduce() -> None:
    import torch
    import torch._dynamo
    from torch.utils.checkpoint import checkpoint

    # 2.9 would compile C++ code for guards on floats, for half a minute.
    torch._dynamo.config.enable_cpp_symbolic_shape_guards = False

    def twice(x: torch.Tensor, s: float) -> torch.Tensor:
        def region(x: torch.Tensor) -> torch.Tensor:
            return (x @ x) * s

        y: torch.Tensor = checkpoint(region, checkpoint(region, x, use_reentrant=False), use_reentrant=False)
        return y

    def and_after(x: torch.Tensor, s: float) -> torch.Tensor:
        y: torch.Tensor = checkpoint(lambda x: (x @ x) * s, x, use_reentrant=False)
        return y * s

    x = torch.arange(9.0, dtype=torch.float64).reshape(3, 3).requires_grad_()
    for function in (twice, and_after):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager")
        for s in (0.25, 0.5, 0.75):
            try:
                result = compiled(x, s)
            except Exception as error:
                if any(message in str(error) for message in _ERRORS):
                    message = str(error).strip().splitlines()[0]
                    raise BugPresent(f"{function.__name__} does not compile for a second float: {message}") from error
                raise
            expected = function(x, s)
            gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (result, expected)]
            if not torch.equal(result, expected) or not torch.equal(*gradients):
                raise BugPresent(f"{function.__name__} under s={s} gives {result}, eager {expected}")


FIX = Fix(
    id="checkpoint-symfloat",
    title="two torch.utils.checkpoint regions that read one changing Python float: AssertionError",
    kind="crash",
    upstream=("pytorch/pytorch#193194", "pytorch/pytorch#193254"),
    affects={"torch": ">=2.9.0.dev0,<2.15.0rc99"},
    fixed_in="2.15.0",
    targets=(f"torch._dynamo.variables.builder:{_WRAP}", f"torch._dynamo.variables.builder:{_AS_PROXY}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
