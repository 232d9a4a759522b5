"""While it builds guards torch.compile prints every tensor that it guards by identity.

A guard says what it checks in a line that is read in logs alone. Since 2.10 that line has the ``repr`` of the guarded
object, and for a tensor that is its values: each is copied from the device, which has to finish first, and formatted.
A step of AdamW has four such tensors for each parameter. Profiles fill with copies (pytorch#176129), devices where
reading a weight is expensive seem to hang (torch-rbln#179), and a ``__repr__`` of the user's runs within the compile.

Since 2.13 the line names the type. ``id_match_unchecked`` is the one place in its module that calls ``repr`` on what is
guarded: the patch puts a ``repr`` next to it that names the type, too. Functions, code, modules and classes print no
values; their lines stay as they are and say which one changed. What the guard checks is untouched.
"""

from __future__ import annotations

from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, replace

_ID_MATCH = "GuardBuilder.id_match_unchecked"
_WITHOUT_VALUES = (type, FunctionType, BuiltinFunctionType, CodeType, ModuleType)


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _ID_MATCH)) for name in code.co_names}
    if vars(module).get("repr", _without_values) is not _without_values:  # ours survives a reload
        return "the module has a repr of its own"
    if "id_ref" not in names:
        return f"{_ID_MATCH} no longer compares identities"
    return "repr" in names


def apply(module: ModuleType) -> None:
    replace(module, "repr", _without_values)


def _without_values(value: Any) -> str:
    return repr(value) if issubclass(type(value), _WITHOUT_VALUES) else type.__repr__(type(value))


def reproduce() -> None:
    import torch
    import torch._dynamo

    printed = []

    class Weight(torch.nn.Parameter):  # type: ignore[misc]
        def __repr__(self, **options: Any) -> str:
            printed.append(self)
            return super().__repr__(**options)  # type: ignore[no-any-return]

    def prints_while_compiling(count: int) -> int:
        printed.clear()
        torch._dynamo.reset()
        weights = [Weight(torch.ones(2)) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.ones(2)
        optimizer = torch.optim.SGD(weights, lr=0.5, foreach=True)
        torch.compile(optimizer.step, backend="eager")()
        if any(weight.tolist() != [0.5, 0.5] for weight in weights):
            raise BugPresent(f"after a step of SGD the weights are {[weight.tolist() for weight in weights]}")
        return len(printed)

    few, many = prints_while_compiling(2), prints_while_compiling(8)
    if few or many:
        raise BugPresent(f"to compile a step with 2 weights they were printed {few} times, with 8 weights {many} times")


FIX = Fix(
    id="guard-tensor-repr",
    title="torch.compile copies tensors from the device and prints them while it builds guards",
    kind="startup",
    upstream=("pytorch/pytorch#176129", "RBLN-SW/torch-rbln#179"),
    affects={"torch": ">=2.10.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._dynamo.guards:{_ID_MATCH}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
