"""A compiled artifact is torn when one process reads it while another saves it.

``CompiledArtifact.save(path=...)`` emptied the file and then wrote into it. Workers that start together (tensor
parallel ranks, several servers on one cache) save the same artifact at the same path. Who loads it meanwhile reads an
empty file, a part, or the beginning of one artifact and the end of another, and ends with an assertion or with
"pickle data was truncated". A full disk leaves such a file behind for good, where a whole one had been.

Upstream writes a file beside it and renames that since 2.10 (pytorch#162432). The patch lets the original save to a
file beside, and puts that in place. What is no plain file that may be replaced (a pipe, a folder, a file without write
permission) is left to the original, as is ``format="unpacked"``: a folder, which no release writes in one step.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from types import ModuleType
from typing import Any
from uuid import uuid4

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_SAVE = "CompiledArtifact.save"


def is_present(module: ModuleType) -> bool | str:
    save = lookup(module, _SAVE)
    names = {name for code in code_objects(save) for name in code.co_names}
    if "write_atomic" in names or getattr(save, "__isabstractmethod__", False):
        return False
    return True if {"open", "write", "to_bytes"} <= names else f"{_SAVE} no longer writes the file itself"


def apply(module: ModuleType) -> None:
    wrap(module.CompiledArtifact, "save", _save_beside)


def _save_beside(original: Any) -> Any:
    def save(self: Any, *, path: str, format: str = "binary") -> None:
        target = os.path.realpath(path)  # a link stays one
        folder, exists = os.path.dirname(target), os.path.lexists(target)
        replaceable = not exists or (os.path.isfile(target) and os.access(target, os.W_OK))
        if format != "binary" or not replaceable or not os.access(folder, os.W_OK):
            return original(self, path=path, format=format)  # type: ignore[no-any-return]
        beside = os.path.join(folder, f".{uuid4().hex}.tmp")
        try:
            original(self, path=beside, format=format)
            if exists:
                with suppress(OSError):
                    shutil.copymode(target, beside)
            os.replace(beside, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise

    return save


def reproduce() -> None:
    import tempfile
    from pathlib import Path

    import torch
    import torch._inductor

    def artifact(function: Any, x: torch.Tensor) -> Any:
        graphs: list[torch.fx.GraphModule] = []

        def capture(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
            graphs.append(graph)
            return graph

        torch.compile(function, backend=capture, fullgraph=True)(x)
        return torch._inductor.standalone_compile(graphs[0], [x])

    x = torch.arange(9.0).reshape(3, 3)
    first, second = artifact(lambda x: x @ x, x), artifact(lambda x: x @ x @ x, x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "artifact")
        first.save(path=str(path))
        whole = path.read_bytes()
        with path.open("rb", buffering=0) as reader:
            # In the middle of reading, as another process may be.
            begin = reader.read(len(whole) // 2)
            second.save(path=str(path))
            read = begin + reader.read()
        if read != whole:
            raise BugPresent("who read an artifact while it was saved got a mixture of the old and the new file")
        loaded = torch._inductor.CompiledArtifact.load(path=str(path))
    if not torch.equal(loaded(x)[0], x @ x @ x):
        raise BugPresent(f"the loaded artifact gives {loaded(x)}")


FIX = Fix(
    id="standalone-save-torn",
    title="a compiled artifact that is loaded while another process saves it is torn",
    kind="cache",
    upstream=("pytorch/pytorch#162432",),
    affects={"torch": ">=2.9.0.dev0,<2.10.0rc99"},
    fixed_in="2.10.0",
    targets=(f"torch._inductor.standalone_compile:{_SAVE}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
