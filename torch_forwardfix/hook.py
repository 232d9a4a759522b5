"""A post-import hook: calls back when one of the named modules has executed, before any importer sees it.

It knows nothing of torch. After the import the module's ``__loader__``, ``__spec__`` and source are those of an
unhooked one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from copy import copy
from importlib.abc import Loader
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader, SourcelessFileLoader
from threading import get_ident
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]

# Each module has a loader object of its own here, so that an attribute on it concerns that module alone.
_OWN_LOADER = (SourceFileLoader, SourcelessFileLoader, ExtensionFileLoader)


class PostImportFinder:
    """Meta path finder that asks the finders after itself and hooks the loader that they give."""

    def __init__(self, names: Collection[str], callback: Callback) -> None:
        self._names = frozenset(names)
        self._callback = callback
        self._asking: set[tuple[int, str]] = set()
        self._hooked: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return None
        # A finder after us may ask the whole meta path again (vLLM's do); then it is not our turn.
        key = (get_ident(), name)
        if key in self._asking:
            return None
        self._asking.add(key)
        try:
            spec = self._ask_the_others(name, path, target)
        finally:
            self._asking.discard(key)
        # A loader that knows load_module() alone is called by importlib in its own way: what it loads has come past us.
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _hook(spec, self._callback)
            self._hooked.add(name)
        return spec

    def has_hooked(self, name: str) -> bool:
        """Whether ``name`` came by: if it is loading now, there will be a callback."""
        return name in self._hooked

    def loaded_past(self) -> list[str]:
        """The names that are loaded and never came by: before this finder was there, or a finder before it answered."""
        return [name for name in self._names - self._hooked if name in sys.modules]

    def _ask_the_others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        finders = list(sys.meta_path)
        position = next((i for i, finder in enumerate(finders) if finder is self), -1)
        for finder in finders[position + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            if find_spec is not None:
                spec: ModuleSpec | None = find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None


def _unseen(function: Any) -> Any:
    """Let CPython trim the function's frame from the traceback of a failing import, as it trims importlib's own."""
    function.__code__ = function.__code__.replace(co_filename="<frozen importlib._bootstrap>")
    return function


def _hook(spec: ModuleSpec, callback: Callback) -> None:
    loader = spec.loader
    if isinstance(loader, _OWN_LOADER) and "exec_module" not in vars(loader):
        vars(loader)["exec_module"] = _ExecModule(loader, callback)
    else:
        spec.loader = _LoaderProxy(loader, callback)


class _ExecModule:
    """Takes the place of a loader's own ``exec_module``, once."""

    def __init__(self, loader: Any, callback: Callback) -> None:
        self._loader = loader
        self._exec_module = loader.exec_module
        self._callback = callback

    @_unseen
    def __call__(self, module: ModuleType) -> None:
        vars(self._loader).pop("exec_module", None)
        self._exec_module(module)
        _announce(module, self._callback)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied or pickled, the loader is one that nobody hooked.
        return getattr, (self._loader, "exec_module")


class _LoaderProxy(Loader):
    """Stands in for a loader that is shared between modules, until the module has executed."""

    def __init__(self, loader: Any, callback: Callback) -> None:
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied or pickled, it is the loader that it stands for.
        return copy, (self._loader,)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create: Callable[[ModuleSpec], ModuleType | None] = self._loader.create_module
        return create(spec)

    @_unseen
    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _announce(module, self._callback)


def _announce(module: ModuleType, callback: Callback) -> None:
    live = sys.modules.get(module.__name__, module)
    # importlib binds a submodule on its parent only after this: too late for a callback that says `import a.b.c`.
    parent, _, child = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, live)
    callback(live)
