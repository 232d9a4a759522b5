"""The salt of torch's compile caches: what was compiled without a fix is never loaded with it, nor the reverse.

The FX graph cache, the AOTAutograd cache, saved artifacts, the autotuning caches and vLLM's own cache all take
``torch_key()``, a hash of torch's sources, for "the code of torch". What is patched at run time is not in it. So the
fixes in force that change generated code are hashed into it here. Where there are none the key stays as it is, and warm
caches stay warm.

``torch.compiler.config.cache_key_tag`` is torch's official salt, but it belongs to the user, whose assignment would
drop ours; vLLM does not read it; and it also keys the profile of dynamic shapes, which no fix concerns.

What ``aot_compile`` saves, and precompiled packages, have no key. They say which torch made them, and are refused by
another one; vLLM then compiles anew. The fixes in force become part of that torch's version.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ._version import __version__
from .fix import Drifted, Fix
from .patching import is_ours, lookup, replace_copies, wrap

CODECACHE = "torch._inductor.codecache"
PACKAGE = "torch._dynamo.package"

InForce = Callable[[], Sequence[Fix]]


@functools.cache
def revision(apply: Callable[[ModuleType], None]) -> str:
    """Return what tells two versions of the same patch apart: a hash of the file that it stands in."""
    module: Any = sys.modules.get(apply.__module__)
    try:
        content: bytes = module.__spec__.loader.get_data(module.__file__)
    except (AttributeError, OSError):  # a frozen program: nothing in it changes on its own
        return __version__
    return _sha256(content).hex()


def _sha256(data: bytes) -> bytes:
    import hashlib  # torch has loaded it by the time it makes a key

    return hashlib.sha256(data).digest()


def digest(value: object) -> str:
    """Return a short hash of ``value``, which JSON can represent."""
    return _sha256(json.dumps(value, sort_keys=True).encode()).hex()[:16]


def _salt(fixes: Sequence[Fix]) -> bytes:
    return "\n".join(sorted(f"{fix.id} {revision(fix.apply)}" for fix in fixes)).encode()


def salt_torch_key(codecache: ModuleType, in_force: InForce) -> None:
    """Make ``torch_key()`` depend on the fixes that ``in_force`` returns at the time of each call.

    A compile worker is handed its parent's key through ``torch_key.set``, salt included, and keeps it as it is. Raises
    Drifted where torch_key is not what it was in 2.9 to 2.15.
    """
    original = lookup(codecache, "torch_key")
    if is_ours(original):
        return
    if not (callable(original) and hasattr(original, "set") and hasattr(original, "clear")):
        raise Drifted(f"{CODECACHE}:torch_key is not a function with set and clear")
    handed_over: list[bytes] = []

    def salted(unsalted: Any) -> Any:
        def torch_key() -> bytes:
            key: bytes = unsalted()
            fixes = () if handed_over else in_force()
            return _sha256(key + _salt(fixes)) if fixes else key

        return torch_key

    def set(value: bytes) -> None:
        original.set(value)
        handed_over[:] = [value]

    def clear() -> None:
        original.clear()
        handed_over.clear()

    wrap(codecache, "torch_key", salted)
    wrapper = codecache.torch_key
    wrapper.set, wrapper.clear = set, clear
    # Nobody has the name by value when the module has just been executed; after a late start the compile workers' pool
    # has.
    replace_copies("torch._inductor", "torch_key", original, wrapper)


def salt_system_info(package: ModuleType, in_force: InForce) -> None:
    """Make the torch that an artifact says it was made with depend on the fixes that ``in_force`` returns.

    torch 2.9 has no ``SystemInfo``: it loads such artifacts without asking, those of other releases of torch, too.
    Raises Drifted where ``SystemInfo`` is not what it was in 2.10 to 2.15.
    """
    system_info = vars(package).get("SystemInfo")
    if system_info is None or is_ours(system_info.__init__):
        return
    if "torch_version" not in getattr(system_info, "__dataclass_fields__", ()):
        raise Drifted(f"{PACKAGE}:SystemInfo has no torch_version")

    def salted(original: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            fixes = in_force()
            # The version of another torch is left as it is.
            if fixes and self.torch_version == package.torch.__version__:
                salt = _sha256(_salt(fixes)).hex()[:16]
                object.__setattr__(self, "torch_version", f"{self.torch_version} with torch-forwardfix {salt}")

        return __init__

    wrap(system_info, "__init__", salted)


SALTS: Mapping[str, Callable[[ModuleType, InForce], None]] = {CODECACHE: salt_torch_key, PACKAGE: salt_system_info}
