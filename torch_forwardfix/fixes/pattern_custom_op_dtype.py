"""Custom operators that see a complex or float8_e8m0fnu tensor: compile errors, and patterns that never match.

Before it tries a pattern, inductor's pattern matcher asks whether it could generate code for the operator with these
dtypes, and goes on to the next one if not. But for a custom operator it never generates code. So a custom operator that
mutates its argument ends the compile with "AssertionError: auto_functionalized_v2 was not removed" as soon as one of
its tensors is complex or float8_e8m0fnu (the scales of MX formats): the pass that removes the wrapper around it is made
of patterns. Fusions that were registered for custom operators are lost in silence.

The same question in ``GraphLowering.run_node`` is for built-in operators alone since pytorch#159174. Upstream has not
repaired the matcher: #193710 and #189522 are open, with #196013, #195817 and #189530 for them. The patch lets patterns
on custom operators through, as #196013 does, and those on the wrappers that must be removed, as #195817 does. For
built-in operators the answer stays.
"""

from __future__ import annotations

from inspect import unwrap
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_ASK = "fallback_node_due_to_unsupported_type"
_APPLY = "PatternMatcherPass.apply"
_WRAPPERS = ("auto_functionalized", "auto_functionalized_v2", "triton_kernel_wrapper_functional")


def is_present(module: ModuleType) -> bool | str:
    apply_names = {name for code in code_objects(unwrap(lookup(module, _APPLY))) for name in code.co_names}
    ask_names = {name for code in code_objects(unwrap(lookup(module, _ASK))) for name in code.co_names}
    if _ASK not in apply_names:
        return f"{_APPLY} no longer asks {_ASK}"
    if "unsupported_output_tensor" not in ask_names:
        return f"{_ASK} no longer looks at the tensors"
    return not (apply_names | ask_names) & {"is_builtin", *_WRAPPERS}


def apply(module: ModuleType) -> None:
    def for_builtins_alone(original: Any) -> Any:
        import torch
        from torch._library.utils import is_builtin

        def fallback_node_due_to_unsupported_type(node: Any, *arguments: Any, **options: Any) -> bool:
            target = node.target
            if isinstance(target, torch._ops.OpOverload):
                if not is_builtin(target):
                    return False
            elif isinstance(target, torch._ops.HigherOrderOperator) and target.name() in _WRAPPERS:
                return False
            answer: bool = original(node, *arguments, **options)
            return answer

        return fallback_node_due_to_unsupported_type

    wrap(module, _ASK, for_builtins_alone)


def reproduce() -> None:
    import torch
    from torch._inductor.pattern_matcher import Arg, CallFunction, PatternMatcherPass, register_graph_pattern

    def into(out: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> None:
        out.copy_(x @ x)

    name, arguments = "forwardfix_pattern", "Tensor x, Tensor scale"
    accumulate = torch.library.custom_op(
        f"{name}::accumulate", into, mutates_args=("out",), schema=f"(Tensor(a!) out, {arguments}) -> ()"
    )
    square = torch.library.custom_op(
        f"{name}::square", lambda x, scale: x @ x, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    square.register_fake(lambda x, scale: torch.empty_like(x))

    def mutating(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        accumulate(out, x, scale)
        return out @ x

    matched: list[Any] = []
    patterns = PatternMatcherPass()
    pattern = CallFunction(square._opoverload, Arg(), Arg())
    register_graph_pattern(pattern, pass_dict=patterns)(lambda match, x, scale: matched.append(match))

    x = torch.arange(9.0).reshape(3, 3)
    for dtype in torch.float32, torch.complex64, torch.float8_e8m0fnu:
        scale = torch.ones(3).to(dtype)
        torch._dynamo.reset()
        try:
            result = torch.compile(mutating)(x, scale)
        except Exception as error:
            if "auto_functionalized_v2 was not removed" in str(error):
                raise BugPresent(
                    f"a custom operator that mutates fails with {dtype}: auto_functionalized_v2 was not removed"
                ) from error
            raise
        if not torch.equal(result, mutating(x, scale)):
            raise BugPresent(f"compiled {result} differs from eager {mutating(x, scale)}")
        matched.clear()
        # With a pass that has no uuid nothing is cached.
        compiled = torch.compile(lambda x, s: square(x, s), options={"post_grad_custom_post_pass": patterns.apply})
        if not torch.equal(compiled(x, scale), x @ x):
            raise BugPresent(f"compiled {compiled(x, scale)} differs from eager {x @ x}")
        if len(matched) != 1:
            raise BugPresent(
                f"a pattern on a custom operator matched {len(matched)} times instead of once with {dtype}"
            )


FIX = Fix(
    id="pattern-custom-op-dtype",
    title="custom operators with a complex or float8_e8m0fnu tensor: compile errors and patterns that never match",
    kind="crash",
    upstream=(
        "pytorch/pytorch#193710",
        "pytorch/pytorch#196013",
        "pytorch/pytorch#189522",
        "pytorch/pytorch#195817",
    ),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._inductor.pattern_matcher:{_ASK}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
