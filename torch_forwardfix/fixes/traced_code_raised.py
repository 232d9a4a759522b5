"""A saved function forgets source files, and vLLM compiles DeepSeek and Kimi models again at every warm start.

Dynamo keeps a list of the code that it has traced through; the files of a saved, AOT-compiled function come from it. A
function that ended in an exception was left out, though its code decided what was traced: ``getattr(config, name,
default)`` traces the configuration's ``__getattribute__``, which raises AttributeError for a name that is not there.

vLLM names the folder of its compile cache after the files that were traced: in a cold start it watches Dynamo, in a
warm one it asks the saved function. DeepSeek-V2, V3 and Kimi ask for ``llama_4_scaling``, so the warm start looked into
another folder, compiled every piece and saved it again (vllm#38051: 4 saved, none loaded). From torch 2.12 on vLLM
keeps the pieces in the saved function, which hides this. The list is as incomplete in 2.15, and whoever asks it whether
a source file has changed since does not see that file.

The patch puts the code of a call that ended in such an exception into the list, after the calls that it made. Code
without a source is left out: a function that traced it could not be saved.
"""

from __future__ import annotations

import inspect
from types import CodeType, ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import lookup, wrap

_INLINE = "InliningInstructionTranslator.inline_call_"


def is_present(module: ModuleType) -> bool | str:
    names: tuple[str, ...] = lookup(module, _INLINE).__code__.co_names
    if not {"run", "traced_code"} <= set(names):
        return f"{_INLINE} no longer runs the call and adds its code to traced_code"
    # Names come in the order of their first use: code that is added before it is run is there however it ends.
    return names.index("run") < names.index("traced_code")


def apply(module: ModuleType) -> None:
    from torch._dynamo.exc import ObservedException

    def add_what_raised(original: Any) -> Any:
        def inline_call_(self: Any) -> Any:
            try:
                return original(self)
            except ObservedException:
                traced = self.output.tracing_context.traced_code
                # A generator that is exhausted raises as well, after it was added.
                if not (traced and traced[-1] is self.f_code) and _has_source(self.f_code):
                    traced.append(self.f_code)
                raise

        return inline_call_

    wrap(module.InliningInstructionTranslator, "inline_call_", add_what_raised)


def _has_source(code: CodeType) -> bool:
    try:
        inspect.getsourcelines(code)
    except Exception:  # OSError, or what a file that is no Python any more leads to
        return False
    return True


class _Config:
    """Asks for every attribute as the configurations of transformers do."""

    size = 3

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


def reproduce() -> None:
    import torch
    from torch._dynamo.utils import get_traced_code

    config = _Config()
    recorded: list[CodeType] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        recorded.extend(get_traced_code() or ())
        return graph

    def scaled(x: torch.Tensor) -> torch.Tensor:
        scaling = getattr(config, "scaling", None)
        return x if scaling is None else x * scaling

    result = torch.compile(scaled, backend=backend, fullgraph=True)(torch.ones(2))
    if result.tolist() != [1.0, 1.0]:
        raise AssertionError(f"the compiled function gives {result.tolist()}")
    if scaled.__code__ not in recorded:
        raise AssertionError("the compiled function itself is not among the code that was traced")
    if _Config.__getattribute__.__code__ not in recorded:
        raise BugPresent("a function that raised AttributeError is not among the code that was traced")


FIX = Fix(
    id="traced-code-raised",
    title="a saved function forgets source files; vLLM compiles DeepSeek and Kimi again at every warm start",
    kind="cache",
    upstream=("vllm-project/vllm#38051",),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._dynamo.symbolic_convert:{_INLINE}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
