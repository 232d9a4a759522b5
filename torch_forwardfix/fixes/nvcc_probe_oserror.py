"""An ``nvcc`` that cannot be started kills every compile on a machine with a GPU.

For each graph inductor notes down a script that would reproduce it, with what ``nvcc --version`` prints as a comment.
Where nvcc is not installed the comment says so. But any other refusal of the system went through: PermissionError on
WSL2 (which looks through Windows' folders) and in locked-down images, "Exec format error", a folder of that name.
torch.compile ended with "InductorError: PermissionError: [Errno 13] Permission denied: 'nvcc'".

Upstream catches OSError since 2.14 (pytorch#185843). The comment is made in one place, ``_cuda_system_info_comment``,
that two other modules import by name. Its own handler is right, it only does not expect the other errors. So the patch
lets every refusal to start nvcc look as if nvcc were not there, in what that module knows as ``subprocess``.
"""

from __future__ import annotations

import subprocess
import sys
from inspect import unwrap
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, replace

_COMMENT = "_cuda_system_info_comment"


class _Subprocess:
    """The module ``subprocess``, but for the one error."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    @staticmethod
    def check_output(command: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return subprocess.check_output(command, *arguments, **options)
        except OSError as error:
            if command[0] == "nvcc" and not isinstance(error, FileNotFoundError):
                raise FileNotFoundError(*error.args) from error
            raise


def is_present(module: ModuleType) -> bool | str:
    # It is cached by functools, in a wrapper.
    names = {name for code in code_objects(unwrap(lookup(module, _COMMENT))) for name in code.co_names}
    if "OSError" in names or "Exception" in names:
        return False
    as_expected = {"subprocess", "check_output", "FileNotFoundError"} <= names
    if as_expected and vars(module).get("subprocess") is subprocess:
        return True
    return f"{_COMMENT} no longer runs nvcc with subprocess.check_output"


def apply(module: ModuleType) -> None:
    replace(module, "subprocess", _Subprocess())


def _is_available() -> bool:
    """Pretend to the one who asks nvcc that there is a GPU."""
    caller: str = sys._getframe(1).f_globals["__name__"]
    return caller == "torch._dynamo.debug_utils"


def reproduce() -> None:
    import os
    import tempfile
    from pathlib import Path
    from unittest import mock

    import torch
    from torch._dynamo import debug_utils

    def square(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    # It keeps the first answer, of which there may be one from another compile in this process.
    debug_utils._cuda_system_info_comment.cache_clear()
    x = torch.arange(9.0).reshape(3, 3)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "nvcc").write_text("not for execution")
        with mock.patch.dict(os.environ, PATH=folder), mock.patch("torch.cuda.is_available", _is_available):
            try:
                result = torch.compile(square)(x)
            except Exception as error:
                if "nvcc" in str(error) and "PermissionError" in str(error):
                    raise BugPresent(f"torch.compile died of nvcc: {str(error).splitlines()[0]}") from error
                raise
    if not torch.equal(result, square(x)):
        raise BugPresent(f"compiled {result} differs from eager {square(x)}")


FIX = Fix(
    id="nvcc-probe-oserror",
    title="torch.compile dies with PermissionError on a GPU machine whose nvcc cannot be started (WSL2, locked images)",
    kind="crash",
    upstream=("pytorch/pytorch#185733", "pytorch/pytorch#185843"),
    affects={"torch": ">=2.9.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch._dynamo.debug_utils:{_COMMENT}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
