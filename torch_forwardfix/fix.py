"""The vocabulary: what a fix is, what can become of it, and what its reproduction raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Final, Literal, get_args

Kind = Literal["wrong-result", "crash", "cache", "startup", "config"]
State = Literal[
    "applied",  # patched
    "waiting",  # the module is not loaded yet
    "not-affected",  # gate: this version does not have the bug
    "already-fixed",  # gate: the probe found the code repaired
    "disabled",  # by the user
    "drifted",  # in range, but the code is not what the fix was written for: not touched
    "foreign",  # somebody else has already patched the target: not touched
    "missed",  # the module was not seen loading and cannot be patched now
    "failed",  # an exception in the fix: rolled back
    "superseded",  # another fix carries the same id
]

KINDS: Final = get_args(Kind)
STATES: Final = get_args(State)


class BugPresent(Exception):
    """Raised by a reproduction that saw its bug; the message says what it saw."""


class Drifted(Exception):
    """Raised by a probe or a patch whose target is not what the fix was written for; nothing is patched."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fix, on one module or as a whole.

    ``module`` is None where no single module is concerned; ``duration`` is in seconds, probe and patch together.
    """

    state: State
    reason: str
    module: str | None = None
    duration: float = 0.0


# Two of them are never compared, and methods that nobody calls take time to make.
@dataclass(frozen=True, eq=False)
class Bug:
    """What is said of every bug, whether there is a fix for it here or not.

    ``affects`` maps a distribution to the PEP 440 specifier of the releases that have the bug; with several, all must
    match. Bounds are pre-releases on purpose, see :func:`check_specifier`. ``fixed_in`` is the first release of the
    first distribution in ``affects`` that has upstream's repair, None while there is none.
    ``reproduce()`` runs the bug through the public API and raises :class:`BugPresent`.

    Raises ValueError, naming the field and the value, where a field is malformed.
    """

    id: str
    title: str
    kind: Kind
    upstream: tuple[str, ...]
    affects: Mapping[str, str]
    fixed_in: str | None
    reproduce: Callable[[], None]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not (self.id.isascii() and self.id == self.id.lower() and all(map(str.isalnum, self.id.split("-")))):
            raise ValueError(f"{name}.id: {self.id!r} is not kebab-case")
        if self.kind not in KINDS:
            raise ValueError(f"{self.id}: {name}.kind: {self.kind!r} is none of {', '.join(KINDS)}")
        for reference in self.upstream:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", reference):
                raise ValueError(f"{self.id}: {name}.upstream: {reference!r} is not of the form 'owner/repository#123'")
        if not self.affects:
            raise ValueError(f"{self.id}: {name}.affects must not be empty")
        for distribution, specifier in self.affects.items():
            try:
                check_specifier(specifier)
            except ValueError as error:
                raise ValueError(f"{self.id}: {name}.affects[{distribution!r}]: {error}") from None


@dataclass(frozen=True, eq=False)
class Fix(Bug):
    """One upstream bug and its repair.

    ``targets`` are ``module:qualname``; ``is_present`` and ``apply`` are called for each module named there once it has
    loaded. ``is_present(module)`` is the probe. It looks at the loaded code without running torch, and returns True
    where the bug is there, False where it is not, or a sentence that says why it cannot tell (state ``drifted``).
    ``apply(module)`` patches through ``torch_forwardfix.patching``, so that it can be rolled back.
    """

    targets: tuple[str, ...]
    changes_codegen: bool
    is_present: Callable[[ModuleType], bool | str]
    apply: Callable[[ModuleType], None]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise ValueError(f"{self.id}: Fix.targets must not be empty")
        for target in self.targets:
            parts = target.split(":")
            if len(parts) != 2 or not all(name.isidentifier() for part in parts for name in part.split(".")):
                raise ValueError(f"{self.id}: Fix.targets: {target!r} is not of the form 'module:qualname'")

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that ``targets`` lie in, in their order, each once."""
        return tuple(dict.fromkeys(target.partition(":")[0] for target in self.targets))


@dataclass(frozen=True, eq=False)
class Unfixed(Bug):
    """One upstream bug that is known and stays: ``why`` there is no fix, and what the user can do (``workaround``)."""

    why: str
    workaround: str


def check_specifier(specifier: str) -> None:
    """Refuse bounds that leave out builds which may have the bug.

    PEP 440 puts pre-releases of 2.12 into neither ``<2.12`` nor ``>=2.12``. But a snapshot such as
    ``2.12.0a0+git1234567`` may still have a bug that 2.12.0 fixed, or already one that 2.12.0 brought. So both bounds
    have to admit the pre-releases of their version, and the probe decides.

    >>> check_specifier(">=2.9.0.dev0,<2.12.0rc99")
    >>> check_specifier("<2.12")
    Traceback (most recent call last):
    ValueError: '<2.12' leaves out pre-releases of 2.12, which may still have the bug: write '<2.12rc99'
    """
    clauses(specifier)


def clauses(specifier: str) -> list[tuple[str, str]]:
    """Split ``specifier`` into operators and versions. Raises ValueError for what :func:`check_specifier` refuses."""
    found = []
    for clause in specifier.split(","):
        match = re.fullmatch(r"\s*(>=|<|==|!=)\s*(\d+(?:\.\d+)*)(\.dev0|rc99)?\s*", clause)
        if match is None:
            raise ValueError(f"{clause.strip()!r} is none of '>=X.dev0', '<Xrc99', '==X', '!=X'")
        operator, release, suffix = match.groups()
        if operator == "<" and suffix != "rc99":
            raise ValueError(
                f"{clause.strip()!r} leaves out pre-releases of {release}, which may still have the bug: "
                f"write '<{release}rc99'"
            )
        if operator == ">=" and suffix != ".dev0":
            raise ValueError(
                f"{clause.strip()!r} leaves out pre-releases of {release}, which may already have the bug: "
                f"write '>={release}.dev0'"
            )
        if operator in ("==", "!=") and suffix:
            raise ValueError(f"{clause.strip()!r} names a single pre-release: write '{operator}{release}'")
        found.append((operator, f"{release}{suffix or ''}"))
    return found
