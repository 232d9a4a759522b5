"""In a container whose user has no passwd entry, torch's compiler cannot even be imported.

OpenShift, ``docker run --user`` and many clusters run programs under a UID that is not in ``/etc/passwd``. There
``getpass.getuser()`` raises KeyError (OSError from Python 3.13 on) unless USER or LOGNAME is set. Inductor asks it for
the name of its default cache folder, and ``codecache`` does so while it is imported, even where
TORCHINDUCTOR_CACHE_DIR names another folder: ``import torch._inductor.codecache`` ends there, and with it every
torch.compile, vLLM and others.

Upstream falls back to a name made of the UID since 2.13 (pytorch#184208). The patch chooses the same name, so that
caches are found again after an upgrade. It is in place before ``runtime_utils`` and ``codecache`` take the function
from its module, since the hook runs between a module's last statement and its importer's next one.
"""

from __future__ import annotations

import os
import tempfile
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_FUNCTION = "default_cache_dir"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _FUNCTION)) for name in code.co_names}
    if "getuser" not in names:
        return f"{_FUNCTION} no longer asks getpass for the user's name"
    return not names & {"KeyError", "OSError", "Exception"}


def apply(module: ModuleType) -> None:
    def without_a_name(original: Any) -> Any:
        def default_cache_dir() -> str:
            try:
                folder: str = original()
            except (KeyError, ModuleNotFoundError, OSError):
                # No name. (Or no folder for temporary files: then gettempdir says so again.)
                getuid = getattr(os, "getuid", None)
                user = "unknown_user" if getuid is None else f"uid_{getuid()}"
                parent = "/var/tmp" if module.is_fbcode() else tempfile.gettempdir()
                return os.path.join(parent, f"torchinductor_{user}")
            return folder

        return default_cache_dir

    wrap(module, _FUNCTION, without_a_name)


FORBIDDEN = "this machine allows no user without a passwd entry"

# Runs in a process of its own, before torch is loaded, while it has one thread. A user namespace is what containers
# use, and keeps the access to files. A fork tries it first: a namespace that is left half set up cannot be undone.
# Where it is forbidden, root can change its real UID alone, which is what getpass asks for.
BECOME_UNKNOWN = rf"""
import ctypes, os, pwd, sys

def is_unknown(uid):
    try:
        return not pwd.getpwuid(uid)
    except KeyError:
        return True

def enter_namespace(uid):
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        raise OSError("no user namespace")
    for name, text in ("setgroups", "deny"), ("uid_map", f"{{uid}} {{user}} 1"), ("gid_map", f"{{uid}} {{group}} 1"):
        with open(f"/proc/self/{{name}}", "w") as file:
            file.write(text)

def become_unknown():
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        os.environ.pop(name, None)
    if is_unknown(os.getuid()):
        return
    uid = next(filter(is_unknown, range(54321, 65000)))
    attempt = os.fork()
    if attempt == 0:
        try:
            enter_namespace(uid)
        finally:
            os._exit(os.getuid() != uid)
    if os.waitpid(attempt, 0)[1] == 0:
        return enter_namespace(uid)
    try:
        os.setreuid(uid, -1)
    except OSError as error:
        sys.exit(f"{FORBIDDEN}: neither in a user namespace nor as root: {{error}}")

become_unknown()
"""

_COMPILE = r"""
import tempfile, traceback
try:
    import torch._inductor.codecache
except (KeyError, OSError) as error:
    if "default_cache_dir" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}:
        print(f"import torch._inductor.codecache ends with {type(error).__name__}: {error}")
        sys.exit()
    raise
import torch
from torch._inductor.runtime import runtime_utils
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

square, x = torch.compile(lambda x: x @ x), torch.arange(9.0).reshape(3, 3)
assert torch.equal(square(x), x @ x)
folder = os.path.join(tempfile.gettempdir(), f"torchinductor_uid_{os.getuid()}")
assert default_cache_dir() == runtime_utils.default_cache_dir() == cache_dir() == folder, default_cache_dir()
assert os.path.isdir(folder)
"""


def reproduce() -> None:
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(
            [sys.executable, "-c", BECOME_UNKNOWN + _COMPILE],
            env={**environment, "TMPDIR": folder},
            capture_output=True,
            text=True,
        )
    if child.returncode:
        raise RuntimeError(f"the process of a user without a passwd entry failed: {child.stderr.strip()}")
    if child.stdout:
        raise BugPresent(child.stdout.strip())
    # Only now: where this process has such a user itself, it can import this only with the fix.
    import torch._inductor.runtime.cache_dir_utils  # noqa: F401


FIX = Fix(
    id="cache-dir-unknown-uid",
    title="importing torch's compiler fails with KeyError for a user without a passwd entry (containers)",
    kind="crash",
    upstream=("pytorch/pytorch#140765", "pytorch/pytorch#184208", "vllm-project/vllm#44579"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._inductor.runtime.cache_dir_utils:{_FUNCTION}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
