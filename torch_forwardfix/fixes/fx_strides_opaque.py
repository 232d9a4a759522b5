"""A custom operator that takes an opaque object and asks for its inputs' strides does not compile.

Operators tagged ``needs_fixed_stride_order`` get their inputs in the stride order of the traced graph:
``constrain_to_fx_strides`` asks each input for its strides. Since 2.10 such an input can be an opaque object (a process
group, the layer name of vLLM), which has none: "Tried to call __getattr__ with attr 'stride' on a FakeScriptObject".
``needs_contiguous_strides`` and ``require_contiguous_strides`` are the same: "get_size() is not implemented".

Upstream leaves out what is no tensor since 2.12 (pytorch#177991). The patch hides it from both functions. The first is
held by value: ``kernel.conv`` takes it before lowering has finished loading, ``graph`` after that, and the table of
layout constraints has it for convolution_backward and, later, for collectives. All that is there is exchanged at once,
the rest is taken from the patched module.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, replace, replace_copies, wrap

_FIXED, _CONTIGUOUS = "constrain_to_fx_strides", "require_contiguous_strides"
_TABLE = "_maybe_layout_constraints"


def is_present(module: ModuleType) -> bool | str:
    fixed = {name for code in code_objects(lookup(module, _FIXED)) for name in code.co_names}
    if not {"IRNode", "stride"} <= fixed:
        # Upstream's test for a tensor is a function of its own.
        return f"{_FIXED} no longer looks at strides" if "stride" not in fixed else False
    contiguous = {name for code in code_objects(lookup(module, _CONTIGUOUS)) for name in code.co_names}
    if not {"IRNode", "tree_map_only"} <= contiguous:
        return f"{_CONTIGUOUS} is not what it was in 2.10 and 2.11"
    if not hasattr(module.ir, "NonTensorObj") or type(lookup(module, _TABLE)) is not dict:
        return "opaque objects or the table of layout constraints are not what they were in 2.10 and 2.11"
    return True


class _Hidden:
    def __init__(self, node: Any) -> None:
        self.node = node


def apply(module: ModuleType) -> None:
    import torch.utils._pytree as pytree

    no_tensor: type = module.ir.NonTensorObj

    def hide_what_is_no_tensor(original: Any) -> Any:
        def constrain(fx_node: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(leaf, no_tensor) for leaf in pytree.tree_leaves((args, kwargs))):
                return original(fx_node, *args, **kwargs)
            hidden_args, hidden_kwargs = pytree.tree_map_only(no_tensor, _Hidden, (args, kwargs))
            constrained = original(fx_node, *hidden_args, **hidden_kwargs)
            return pytree.tree_map_only(_Hidden, lambda hidden: hidden.node, constrained)

        return constrain

    before = lookup(module, _FIXED)
    wrap(module, _FIXED, hide_what_is_no_tensor)
    wrap(module, _CONTIGUOUS, hide_what_is_no_tensor)
    after = lookup(module, _FIXED)
    replace_copies("torch._inductor", _FIXED, before, after)
    table = {operator: after if held is before else held for operator, held in lookup(module, _TABLE).items()}
    replace(module, _TABLE, table)


def reproduce() -> None:
    import importlib

    import torch

    try:
        from torch._library import opaque_object
    except ImportError:
        return  # 2.9 has no opaque objects

    base: Any = object
    for name in ("torch._custom_class_base:CustomClassBase", "torch._opaque_base:OpaqueBase"):  # newest first
        home, _, attribute = name.partition(":")
        try:
            base = getattr(importlib.import_module(home), attribute)
        except ImportError:
            continue
        break
    factor = type("Factor", (base,), {"__module__": __name__, "value": 3.0})
    if hasattr(opaque_object, "register_custom_class"):
        opaque_object.register_custom_class(factor, typ="symbolic")
    else:
        opaque_object.register_opaque_type(factor, typ="reference")

    schema = f"(Tensor x, {opaque_object.get_opaque_type_name(factor)} factor) -> Tensor"
    library = torch.library.Library("torch_forwardfix_opaque", "DEF")
    found = []

    def scaled_square(x: torch.Tensor, factor: Any, operator: Any) -> Any:
        return operator(x @ x, factor)

    try:
        for tag in (torch.Tag.needs_fixed_stride_order, torch.Tag.needs_contiguous_strides):
            name = str(tag).rpartition(".")[2]
            library.define(name + schema, tags=(tag,))
            library.impl(name, lambda x, factor: x * factor.value, "CompositeExplicitAutograd")
            torch.library.register_fake(f"{library.ns}::{name}", lambda x, _: torch.empty_like(x), lib=library)
            operator = getattr(getattr(torch.ops, library.ns), name).default
            x = torch.arange(9.0).reshape(3, 3)
            try:
                result = torch.compile(scaled_square, fullgraph=True)(x, factor(), operator)
            except Exception as error:
                if "attr 'stride' on a FakeScriptObject" in str(error) or "get_size() is not implemented" in str(error):
                    found.append(f"an operator that {name.replace('_', ' ')}: {str(error).splitlines()[0][:120]}")
                    continue
                raise
            if not torch.equal(result, scaled_square(x, factor(), operator)):
                found.append(f"{name}: compiled {result} differs from eager {scaled_square(x, factor(), operator)}")
    finally:
        library._destroy()
    if found:
        raise BugPresent("; ".join(found))


FIX = Fix(
    id="fx-strides-opaque",
    title="torch.compile fails on custom operators that fix their strides and take an opaque object",
    kind="crash",
    upstream=("pytorch/pytorch#175973", "pytorch/pytorch#177991", "vllm-project/vllm#36152"),
    affects={"torch": ">=2.10.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._inductor.lowering:{_FIXED}", f"torch._inductor.lowering:{_CONTIGUOUS}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
