"""A class attribute that is read through its class is frozen into the compiled code.

Dynamo took ``Config.scale``, ``type(self).scale`` or ``cls.scale`` for a constant where the attribute is a number, a
string, None, an enum member or a list, tuple or set of such, and put no guard on it. When the program sets another
value, compiled code goes on with the first one (pytorch#176851); what compiled code appends to such a list is lost
(pytorch#169253). What is read through an instance, and dicts, tensors and objects, always had guards.

Upstream repaired the two lines (pytorch#177191) and rewrote the lookup for 2.12: what lies on the class is built with
its source, that is, guarded and tracked. The patch does the same, with those constants alone. A constant that stays the
same costs one guard; where it changes, there is one compilation for each value, as for a global. Under ``dynamic=True``
numbers stay constants. Names like ``__doc__``, enum classes and what a metaclass has a say in are left as they were.
"""

from __future__ import annotations

import enum
import inspect
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_GETATTR = "UserDefinedClassVariable.var_getattr"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _GETATTR)) for name in code.co_names}
    if "is_literal" in names and "getattr_static" in names:
        return True
    return False if "resolve_cls_plain_attr" in names else f"{_GETATTR} no longer looks for literals"


def apply(module: ModuleType) -> None:
    wrap(module.UserDefinedClassVariable, "var_getattr", _guarded)


def _guarded(original: Any) -> Any:
    def var_getattr(self: Any, tx: Any, name: str) -> Any:
        from torch._dynamo import config
        from torch._dynamo.guards import GuardBuilder, install_guard
        from torch._dynamo.source import AttrSource
        from torch._dynamo.variables import ConstantVariable
        from torch._dynamo.variables.base import VariableTracker

        result = original(self, tx, name)
        if self.source is None or result.source is not None or not _is_plain(self.value, name):
            return result
        value = inspect.getattr_static(self.value, name)
        is_member = isinstance(value, enum.Enum)
        if not is_member and not ConstantVariable.is_literal(value):
            return result
        source = AttrSource(self.source, name)
        if config.assume_static_by_default or isinstance(value, (list, set)):
            return VariableTracker.build(tx, value, source)
        install_guard(source.make_guard(GuardBuilder.ID_MATCH if is_member else GuardBuilder.CONSTANT_MATCH))
        return result

    return var_getattr


def _is_plain(owner: type, name: str) -> bool:
    """Whether ``owner.name`` is what lies in the dict of ``owner`` or of a base, and may be set."""
    if not issubclass(type(owner), type) or issubclass(owner, enum.Enum):
        return False
    if name.startswith("__") and name.endswith("__"):
        return False
    metaclasses = type(owner).__mro__[: type(owner).__mro__.index(type)]
    if any(name in vars(base) or "__getattribute__" in vars(base) for base in metaclasses):
        return False
    return any(name in vars(base) for base in owner.__mro__)


def reproduce() -> None:
    import torch

    class Settings:
        scale = 2
        shape = (3, 1)
        negate = False
        sizes: list[int] = []  # noqa: RUF012

    class Layer:
        power = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Settings.sizes.append(len(x))
            x = (x ** type(self).power).reshape(Settings.shape) * Settings.scale
            return -x if Settings.negate else x

    layer = Layer()
    compiled = torch.compile(layer.forward, backend="eager")
    x = torch.arange(3.0, dtype=torch.float64)
    compiled(x)
    if Settings.sizes != [3]:
        raise BugPresent("what compiled code appends to a list of a class is lost")
    changes = (Settings, "scale", 5), (Settings, "shape", (1, 3)), (Settings, "negate", True), (Layer, "power", 3)
    for owner, name, value in changes:
        setattr(owner, name, value)
        result, expected = compiled(x), layer.forward(x)
        if result.shape != expected.shape or not torch.equal(result, expected):
            raise BugPresent(f"{owner.__name__}.{name} is now {value}, but compiled {result} differs from {expected}")


FIX = Fix(
    id="class-attr-guard",
    title="torch.compile ignores changes to class attributes that are read through the class, loses appends to them",
    kind="wrong-result",
    upstream=("pytorch/pytorch#176851", "pytorch/pytorch#169253", "pytorch/pytorch#177191"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._dynamo.variables.user_defined:{_GETATTR}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
