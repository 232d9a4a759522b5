"""Forward fixes for torch.compile, applied when torch loads its compiler.

``torch_forwardfix.pth`` runs :func:`init` in every interpreter of the environment, also in those that never see torch.
So this module imports ``sys`` alone, builds no class, and leaves everything else to ``engine``, which is imported when
``torch._dynamo`` or ``torch._inductor`` is.
"""

import sys

__all__ = [
    "BugPresent",
    "Fix",
    "FixStatus",
    "Outcome",
    "RanksDiffer",
    "__version__",
    "activate",
    "check_ranks",
    "init",
    "status",
]


def watcher(name, path=None, target=None):
    """Finder that waits for the first import of torch's compiler, then hands over to ``engine``."""
    if name == "torch._dynamo" or name == "torch._inductor":
        try:
            from .engine import take_over

            finder = take_over()
        except Exception as error:
            # A fault of our own (say, files replaced while the process runs): leave the import path; torch goes on. A
            # function of its own for this would cost every start more than it costs here.
            import os
            from logging import getLogger

            if os.environ.get("TORCH_FORWARDFIX_STRICT", "").strip().lower() in ("1", "on", "true", "yes"):
                raise
            sys.meta_path = [finder for finder in sys.meta_path if finder is not watcher]
            try:
                getLogger(__name__).warning("no fix is applied: %s: %s", type(error).__name__, error)
            except Exception:  # of a handler of the user's
                return None
        else:
            return finder.find_spec(name, path, target)
    return None


# A finder is any object with find_spec. Building a class for it would cost a twelfth of all that we add to a start.
watcher.find_spec = watcher


def init():
    """Arm the hook. ``torch_forwardfix.pth`` calls this by name, so the name can never change.

    Calling it again does nothing: virtual environments before Python 3.15 run every ``.pth`` line twice. It reads
    ``TORCH_FORWARDFIX``, never raises and never prints.
    """
    import os

    if watcher in sys.meta_path or __name__ + ".engine" in sys.modules:
        return
    if os.environ.get("TORCH_FORWARDFIX", "").strip().lower() not in ("0", "off", "false", "no"):
        sys.meta_path.insert(0, watcher)


def __getattr__(name):
    homes = {
        "BugPresent": "fix",
        "Fix": "fix",
        "FixStatus": "report",
        "Outcome": "fix",
        "RanksDiffer": "fingerprint",
        "__version__": "_version",
        "activate": "engine",
        "check_ranks": "fingerprint",
        "status": "report",
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("." + homes[name], __name__), name)
