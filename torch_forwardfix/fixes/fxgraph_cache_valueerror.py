"""A cache key that cannot be pickled kills the compile.

Inductor pickles the graph, the example inputs and its own configuration into the key of the FX graph cache. What cannot
be pickled is meant to bypass the cache: ``FxGraphCachePickler.dumps`` turns TypeError, AttributeError and PicklingError
into ``BypassFxGraphCache``. But the pickler runs in fast mode, where an object that refers to itself raises ValueError,
as do some mkldnn and opaque tensors; that one went through and ended the compile of a program that needed no cache.

Upstream added ValueError to the list (pytorch#176532, #176557). The patch does the same from outside. It is a wrapper
on the base class, so ``AOTAutogradCachePickler`` and other sub-classes have it as well.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_DUMPS = "FxGraphCachePickler.dumps"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _DUMPS)) for name in code.co_names}
    if "BypassFxGraphCache" not in names or "BypassFxGraphCache" not in vars(module):
        return f"{_DUMPS} no longer raises BypassFxGraphCache"
    return "ValueError" not in names and "Exception" not in names


def apply(module: ModuleType) -> None:
    bypass: type[Exception] = module.BypassFxGraphCache

    def convert_value_error(original: Any) -> Any:
        def dumps(self: Any, obj: Any) -> bytes:
            try:
                key: bytes = original(self, obj)
            except ValueError as error:
                # torch says the same, at the same level, for the exceptions that it converts itself.
                module.log.warning("Failed to pickle cache key", exc_info=True)
                raise bypass("Failed to pickle cache key") from error
            return key

        return dumps

    wrap(module.FxGraphCachePickler, "dumps", convert_value_error)


def reproduce() -> None:
    import torch
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class PassWithCyclicKey(CustomGraphPass):  # type: ignore[misc]
        def __call__(self, graph: torch.fx.Graph) -> None:
            pass

        def uuid(self) -> Any:
            key: list[Any] = []
            key.append(key)
            return key

    def square(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    x = torch.arange(9.0).reshape(3, 3)
    compiled = torch.compile(square, options={"post_grad_custom_post_pass": PassWithCyclicKey()})
    try:
        result = compiled(x)
    except Exception as error:
        if "can't pickle cyclic objects" in str(error):
            raise BugPresent(f"torch.compile died of its cache key: {str(error).splitlines()[-1]}") from error
        raise
    if not torch.equal(result, square(x)):
        raise BugPresent(f"compiled {result} differs from eager {square(x)}")


FIX = Fix(
    id="fxgraph-cache-valueerror",
    title="torch.compile dies with ValueError when its cache key cannot be pickled",
    kind="crash",
    upstream=("pytorch/pytorch#176557", "pytorch/pytorch#176532", "vllm-project/vllm#38205"),
    affects={"torch": ">=2.9.0.dev0,<2.11.0rc99"},
    fixed_in="2.11.0",
    targets=(f"torch._inductor.codecache:{_DUMPS}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
