"""Inductor does not know vLLM's operators, and takes each of them for a mistake that it has to make up for.

An operator without a lowering is called as it is. Inductor does so at once for those on a list, FALLBACK_ALLOW_LIST.
For any other one it looks for a decomposition first, and logs "Creating implicit fallback" with all arguments, the text
of which may take minutes to make. vLLM puts its operators on the list when it is imported (vllm#42129), for every
release of torch. The patch does the same when inductor first meets one, also in processes that never import vLLM.

On the list an operator also loses the layout that inductor gives to the arguments of those that it does not know. Here
it keeps that: the generated code is the same with the patch and without.
"""

from __future__ import annotations

import logging
import uuid
from types import ModuleType
from typing import Any

from torch_forwardfix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

CALL = "GraphLowering.call_function"
NAMESPACES = ("vllm", "vllm_aiter")


def is_present(module: ModuleType) -> bool | str:
    """The probe: look at the code that was loaded; run nothing."""
    if all(f"{namespace}::any" in lookup(module, "FALLBACK_ALLOW_LIST") for namespace in NAMESPACES):
        return False  # vLLM was here first
    names = {name for code in code_objects(lookup(module, CALL)) for name in code.co_names}
    if "FALLBACK_ALLOW_LIST" not in names:
        return f"{CALL} no longer asks FALLBACK_ALLOW_LIST"
    return True


def apply(module: ModuleType) -> None:
    """The patch: put each operator on the list before the original looks for it there."""
    allowed = module.FALLBACK_ALLOW_LIST
    ours = set()

    def know_ours(original: Any) -> Any:
        def call_function(self: Any, target: Any, args: Any, kwargs: Any) -> Any:
            if getattr(target, "namespace", "") in NAMESPACES and target not in module.lowerings:
                name = target.name().partition(".")[0]
                if name in ours or name not in allowed:
                    ours.add(name)
                    allowed.add(name)
                    keep_layout(target)
            return original(self, target, args, kwargs)

        return call_function

    wrap(module.GraphLowering, "call_function", know_ours)


def keep_layout(target: Any) -> None:
    from torch._inductor.lowering import add_layout_constraint, get_layout_constraint_tag, tag_to_layout_constraint

    add_layout_constraint(target, tag_to_layout_constraint(get_layout_constraint_tag(target, with_default=True)))


def reproduce() -> None:
    """The proof: raise BugPresent where the bug is seen, through the public API. It has to run on every release."""
    import torch

    # A name of its own: inductor knows an operator after the first graph, and graphs that it finds in a cache.
    name = f"probe_{uuid.uuid4().hex}"
    library = torch.library.Library("vllm", "FRAGMENT")
    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, torch.Tensor.neg, "CompositeExplicitAutograd")
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, listener = logging.getLogger("torch._inductor.graph"), Listener()
    level, propagate = log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        x = torch.arange(3.0)
        result = torch.compile(getattr(torch.ops.vllm, name), fullgraph=True)(x)
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
        log.propagate = propagate
    if not torch.equal(result, -x):
        raise BugPresent(f"compiled {result} differs from eager {-x}")
    if any("implicit fallback" in message and name in message for message in said):
        raise BugPresent("inductor created an implicit fallback for an operator of vLLM's")


FIX = Fix(
    id="vllm-known-ops",
    title="inductor takes vLLM's operators for unknown ones, and describes their arguments at length",
    kind="startup",
    upstream=("vllm-project/vllm#42129",),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._inductor.graph:{CALL}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
