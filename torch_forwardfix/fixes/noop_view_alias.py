"""A tensor and a view of it that looks the same come back from compiled code as one object.

``y = x + 1; return y, y.view(y.shape)`` gives two tensors on one storage. Inductor drops views that change nothing and
returned one tensor twice; so it did with ``y[:]``, ``y.expand(y.shape)``, ``y.detach()``, and two such views of ``y``.
What is done to the metadata of one was then done to the other. ``y.view(-1).resize_(12)`` is enough: any ``resize_``
breaks the graph, ``y`` and its view are returned for it, and ``y`` had twelve elements too, most of them uninitialised.

Backends may do so: AOTAutograd rebuilds views when the compiled code has run. But it classified an output as the alias
of another one only where gradients are involved. Upstream classifies views of a returned tensor so since 2.15
(pytorch#191449, #191844); the detached alias and two views of a tensor that is not returned are open. The patch
classifies all of them so, behind the original analysis, where the graph is compiled and not exported.
"""

from __future__ import annotations

import sys
from dataclasses import replace as replaced
from functools import wraps
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, replace, wrap

_HOME = "torch._functorch._aot_autograd.collect_metadata_analysis"
_ANALYSIS = "run_functionalized_fw_and_collect_metadata"
_USERS = (
    "torch._functorch.aot_autograd",
    "torch._functorch._aot_autograd.runtime_wrappers",
    "torch._functorch._aot_autograd.graph_capture_wrappers",
)


def is_present(module: ModuleType) -> bool | str:
    codes = list(code_objects(lookup(module, _ANALYSIS)))
    names = {name for code in codes for name in code.co_names}
    if not {"OutputAliasInfo", "non_alias", "alias_of_intermediate_base_is_user_output"} <= names:
        return f"{_ANALYSIS} no longer classifies outputs"
    if not any("keep_input_mutations" in code.co_varnames + code.co_cellvars for code in codes):
        return f"{_ANALYSIS} no longer knows what is compiled and what is exported"
    return True


def apply(module: ModuleType) -> None:
    original = vars(module)[_ANALYSIS]
    wrap(module, _ANALYSIS, lambda original: _classify(original, module))
    for name in _USERS:
        user = sys.modules.get(name)  # they hold the function by value, where they were loaded before us
        if user is not None and vars(user).get(_ANALYSIS) is original:
            replace(user, _ANALYSIS, vars(module)[_ANALYSIS])


def _classify(original: Any, module: ModuleType) -> Any:
    def run_functionalized_fw_and_collect_metadata(f: Any, *arguments: Any, **options: Any) -> Any:
        if not options.get("keep_input_mutations"):  # an export, which would refuse aliases, or record them
            return original(f, *arguments, **options)
        outputs: list[Any] = []

        @wraps(f)
        def remember_outputs(*arguments: Any) -> Any:
            result = f(*arguments)
            outputs[:] = result
            return result

        analyse = original(remember_outputs, *arguments, **options)

        @wraps(analyse)
        def inner(*arguments: Any) -> Any:
            try:
                return _with_aliases(analyse(*arguments), outputs, module)
            finally:
                outputs.clear()

        return inner

    return run_functionalized_fw_and_collect_metadata


def _with_aliases(metadata: Any, outputs: list[Any], module: ModuleType) -> Any:
    import torch
    from torch._functorch._aot_autograd.functional_utils import MetadataKey

    kinds = module.OutputType
    look_alikes: dict[Any, list[int]] = {}
    for index, (output, info) in enumerate(zip(outputs, metadata.output_info, strict=True)):
        if (
            info.output_type is kinds.non_alias
            and isinstance(output, module.FunctionalTensor)  # not the sub-classes that wrap tensors
            and output.layout == torch.strided
        ):
            # The key compares symbolic shapes by their expressions, so it adds no guards.
            key = output.untyped_storage()._cdata, output.dtype, MetadataKey.make(output)
            look_alikes.setdefault(key, []).append(index)
    infos = list(metadata.output_info)
    for indices in look_alikes.values():
        base, *others = sorted(indices, key=lambda index: outputs[index]._base is not None)
        for index in others:
            if outputs[index] is not outputs[base] and not infos[index].requires_grad:
                kind = kinds.alias_of_intermediate_base_is_user_output
                infos[index] = replaced(infos[index], output_type=kind, base_idx=base)
    return metadata if infos == metadata.output_info else replaced(metadata, output_info=infos)


def reproduce() -> None:
    import torch

    def view(x: torch.Tensor) -> Any:
        y = x @ x
        return y, y.view(3, 3)

    def detached(x: torch.Tensor) -> Any:
        y = x @ x
        return y, y.detach()

    def two_views(x: torch.Tensor) -> Any:
        y = x @ x
        return y.view(3, 3), y[:]

    # A matrix product alone needs no C++ compiler.
    for function in (view, detached, two_views):
        first, second = torch.compile(function)(torch.arange(9.0).reshape(3, 3))
        if first is second:
            raise BugPresent(f"{function.__name__}: the results are one object")
        second.resize_(0)
        if first.shape != (3, 3):
            raise BugPresent(f"{function.__name__}: resizing one result gave both the shape {tuple(first.shape)}")


FIX = Fix(
    id="noop-view-alias",
    title="a tensor and a view of it with the same shape are returned as one object",
    kind="wrong-result",
    upstream=("pytorch/pytorch#191449", "pytorch/pytorch#191844"),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"{_HOME}:{_ANALYSIS}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
