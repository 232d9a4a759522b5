"""With ``inline_inbuilt_nn_modules=False``, a compiled ``module.children()`` ends with a NameError.

So do ``modules()``, ``parameters()``, ``buffers()`` and the ``values()`` of a ``ModuleDict``: they share a helper that
returns a list by the name that it has in the code around it, where it is assigned for ``named_children()`` alone. One
release has it, 2.10.0. The setting is that of back ends that want modules kept whole, set for the whole process.

Upstream renamed the variable (pytorch#173924, #174399). Their ``named_...`` counterparts, and ``items()``, go the same
way and are right: the patch calls them and takes the names off.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_CALL_METHOD = "NNModuleVariable.call_method"
_NAMED = {
    "children": "named_children",
    "modules": "named_modules",
    "parameters": "named_parameters",
    "buffers": "named_buffers",
    "values": "items",
}


def is_present(module: ModuleType) -> bool:
    codes = code_objects(lookup(module, _CALL_METHOD))
    return any("named_children" in code.co_freevars for code in codes if code.co_name == "wrap_values")


def apply(module: ModuleType) -> None:
    wrap(module.NNModuleVariable, "call_method", _without_names)


def _without_names(original: Any) -> Any:
    def call_method(self: Any, tx: Any, name: str, args: Any, kwargs: Any, constant: bool = False) -> Any:
        if name not in _NAMED:
            return original(self, tx, name, args, kwargs, constant)
        if name == "modules":
            args, kwargs = (), {}  # not looked at
        elif name in ("parameters", "buffers") and len(args) == 1 and not kwargs:
            args, kwargs = (), {"recurse": args[0]}
        if args or kwargs.keys() - {"recurse"} or (kwargs and name in ("children", "values")):
            return original(self, tx, name, args, kwargs, constant)  # refused, before the helper comes
        pairs = original(self, tx, _NAMED[name], args, kwargs, constant)
        pairs.items = [pair.items[1] for pair in pairs.items]
        return pairs

    return call_method


def reproduce() -> None:
    import torch
    import torch._dynamo

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Softsign())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers.children():
                x = x + layer(x)
            return x

    model, x = Model(), torch.arange(4.0)
    with torch._dynamo.config.patch(inline_inbuilt_nn_modules=False):
        try:
            result = torch.compile(model, backend="eager")(x)
        except Exception as error:
            if "NameError" in str(error) and "named_children" in str(error):
                raise BugPresent(f"children() in a compiled model: {str(error).splitlines()[0]}") from error
            raise
    if not torch.equal(result, model(x)):
        raise BugPresent(f"compiled {result} differs from eager {model(x)}")


FIX = Fix(
    id="nnmodule-call-nameerror",
    title="children(), modules(), parameters() or buffers() under inline_inbuilt_nn_modules=False: NameError",
    kind="crash",
    upstream=("pytorch/pytorch#173924", "pytorch/pytorch#174133", "pytorch/pytorch#174399"),
    affects={"torch": ">=2.10.0.dev0,<2.11.0rc99"},
    fixed_in="2.11.0",
    targets=(f"torch._dynamo.variables.nn_module:{_CALL_METHOD}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
