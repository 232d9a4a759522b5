"""Inside a compiled ``torch.func.grad`` the input does not seem to require a gradient.

``grad``, ``vjp`` and ``jacrev`` switch ``requires_grad`` on in place for the tensor that they hand to the function. The
operation is in the graph, but dynamo's picture of the tensor keeps the old flag. ``x.requires_grad`` reads False, so
that branches on it go the wrong way, and a ``torch.autograd.Function`` called with it is inlined, its ``backward``
silently replaced by the derivative of its forward (straight-through estimators get zero). Upstream reads the flag again
after the operation since 2.15 (pytorch#193279, #193724).
"""

from __future__ import annotations

from typing import Any

from torch_forwardfix.fix import BugPresent, Unfixed


def reproduce() -> None:
    import torch

    class RoundStraightThrough(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x.round()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (RoundStraightThrough.apply(x) * (2 if x.requires_grad else 3)).sum()

    x = torch.linspace(0, 1, 4, dtype=torch.float64)
    eager = torch.func.grad(loss)(x)
    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager")(x)
    if not torch.equal(compiled, eager):
        raise BugPresent(f"the compiled gradient {compiled.tolist()} differs from eager {eager.tolist()}")


BUG = Unfixed(
    id="func-grad-requires-grad",
    title="in a compiled torch.func.grad, requires_grad reads False and custom backwards are silently replaced",
    kind="wrong-result",
    upstream=("pytorch/pytorch#193279", "pytorch/pytorch#193724"),
    affects={"torch": ">=2.9.0.dev0,<2.15.0rc99"},
    fixed_in="2.15.0",
    why="with the flag put right, dynamo traces an autograd.Function in a way that these releases get wrong under "
    "vmap, nested transforms and outer gradients: a patch trades one wrong gradient for another",
    workaround="leave the transform out of the compiled function",
    reproduce=reproduce,
)
