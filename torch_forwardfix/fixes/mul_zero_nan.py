"""A float ``x * 0`` is compiled to plain zeros: NaN and Inf vanish.

Inductor's joint graph pass replaces tensors of one value by ``aten.full``. A peephole rule feeds it products whose
value is known although a factor is not: any ``mul`` with a literal int zero. That is right for integers and bools
alone. ``nan * 0`` and ``inf * 0`` are NaN, ``-1.0 * 0`` is ``-0.0``; compiled code returned 0.0 for all of them, and so
hid the overflow that such an expression is often there to carry on.

Upstream leaves floating point and complex products out of the rule since 2.14 (pytorch#186281). The patch lets the rule
run and then takes back what it noted for such products; they stay real multiplications. Integer products are folded as
before, and so are products of constants, which the folder computes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_RULE = "UniformValueConstantFolder._add_peephole_patterns"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _RULE)) for name in code.co_names}
    if "add_node_replacement" not in names or "mul" not in names:
        return f"{_RULE} no longer folds products"
    return "is_floating_point" not in names


def apply(module: ModuleType) -> None:
    def keep_float_products(original: Any) -> Any:
        def _add_peephole_patterns(self: Any) -> None:
            before = set(self.node_replacements)
            original(self)
            for node in self.node_replacements.keys() - before:
                dtype = node.meta["val"].dtype
                if dtype.is_floating_point or dtype.is_complex:
                    del self.node_replacements[node]
                    del self.node_replacements_shapes[node]
                    del self.constant_data_ptrs[node]

        return _add_peephole_patterns

    wrap(module.UniformValueConstantFolder, "_add_peephole_patterns", keep_float_products)


def reproduce() -> None:
    import torch

    def times_zero(x: torch.Tensor) -> torch.Tensor:
        return x * 0

    x = torch.tensor([float("nan"), float("inf"), -1.0, 2.0])
    # For one small C++ kernel, precompiling torch's headers takes longer than the kernel does.
    result = torch.compile(times_zero, options={"cpp_cache_precompile_headers": False})(x)
    expected = times_zero(x)
    if not torch.equal(result.isnan(), expected.isnan()) or not torch.equal(result.signbit(), expected.signbit()):
        raise BugPresent(f"{x.tolist()} * 0 is {result.tolist()}, in eager {expected.tolist()}")


FIX = Fix(
    id="mul-zero-nan",
    title="float x * 0 is compiled to plain zeros: NaN and Inf vanish",
    kind="wrong-result",
    upstream=("pytorch/pytorch#186281",),
    affects={"torch": ">=2.9.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch._inductor.fx_passes.joint_graph:{_RULE}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
