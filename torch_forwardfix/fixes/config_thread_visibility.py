"""``torch._dynamo.config.x = ...`` is invisible in every other thread.

Up to torch 2.11 an assignment to a config held for the process. Since 2.12 the value goes into a ContextVar of the
assigning thread (pytorch#173568), so that ``config.patch`` no longer leaks into other threads. But plain assignments
went the same way: worker threads, and the autograd threads that run the backward, compile with the defaults again
(pytorch#186537). Limits are hit that were raised, flags are ignored that were set.

Reading is left alone. A plain assignment puts a new ContextVar in place that has the value for its default: all threads
see it. ``config.patch`` and torch's own temporary settings stay local: they hold their entries, and what is assigned
meanwhile goes around them. Where the assigning context itself has patched the entry, the assignment ends with the
patch, as in every release. Lists, sets and dicts that are changed in place are shared again.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import partial
from inspect import unwrap
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, is_ours, lookup, wrap

_CONFIG = "torch.utils._config_module"
# Context managers of torch that assign and put back, and what they set in which config. They can be used in several
# threads at a time because assignments are local; they stay so.
_TEMPORARY = {
    "torch._dynamo.utils": "disable_cache_limit _dynamo recompile_limit accumulated_recompile_limit",
    "torch._higher_order_ops.utils": "_set_compilation_env _dynamo allow_empty_graphs capture_scalar_outputs",
    "torch.export._trace": "_disable_custom_triton_op_functional_decomposition _functorch decompose_custom_triton_ops",
}

_ABSENT = object()
_lock = threading.RLock()
# How many patches, in any context, hold a ContextVar: it must not be replaced before they are over.
_holders: dict[ContextVar[Any], int] = {}
_Held = list[tuple[Any, ContextVar[Any], Token[Any]]]
# The patches that are active in this context, and what they hold.
_active: ContextVar[tuple[tuple[Any, _Held], ...]] = ContextVar("torch_forwardfix_active", default=())
# How often a module was assigned to, and up to where this context knows: torch 2.13 and later cache hashes in each.
_assigned: dict[ModuleType, int] = {}
_noticed: ContextVar[dict[ModuleType, int] | None] = ContextVar("torch_forwardfix_noticed", default=None)


def is_present(module: ModuleType) -> bool | str:
    setup = unwrap(lookup(sys.modules[_CONFIG], "_ConfigEntry.__init__"))  # it may be patched already
    if "ContextVar" not in {name for code in code_objects(setup) for name in code.co_names}:
        return False
    if module.__name__ == _CONFIG:
        names, function = ["user_override", "set"], lookup(module, "ConfigModule.__setattr__")
    else:
        name, _, *names = _TEMPORARY[module.__name__].split()
        function = unwrap(lookup(module, name))
    return set(names).issubset(function.__code__.co_names) or f"{module.__name__} no longer sets {', '.join(names)}"


def _untraced(function: Any) -> Any:
    """Have dynamo step over ``function`` as it does over torch's config module: it goes by the name of the file.

    So do warnings, which would otherwise point here instead of at the caller.
    """
    function.__code__ = function.__code__.replace(co_filename="<frozen importlib._bootstrap>")
    return function


class _Detour:
    """Stands in for a ContextVar that is patched in some context while another value is assigned for all others."""

    def __init__(self, variable: ContextVar[Any], value: Any) -> None:
        self.variable, self.value = variable, value
        self.get = partial(variable.get, value)
        self.set, self.reset = variable.set, variable.reset


@_untraced
def _variable_of(entry: Any) -> ContextVar[Any]:
    found: ContextVar[Any] | _Detour = entry.user_override
    return found.variable if isinstance(found, _Detour) else found


@_untraced
def _new_variable(entry: Any, name: str, value: Any) -> ContextVar[Any]:
    # One for each value: code that was compiled under a value and reads it is guarded by the identity of its variable.
    if type(value) not in (bool, int, float, str, type(None)):
        return ContextVar(name, default=value)
    made: dict[tuple[type, str], ContextVar[Any]] = vars(entry).setdefault("_torch_forwardfix", {})
    if len(made) >= 64:
        made.clear()
    return made.setdefault((type(value), repr(value)), ContextVar(name, default=value))


@_untraced
def _assign(pairs: Iterable[tuple[Any, Any]], original: Any, *arguments: Any, **options: Any) -> Any:
    """Run ``original``, which sets some of the entries; then set for all threads those that no patch holds here."""
    with _lock:
        free = {}
        for module, entry in pairs:
            variable = _variable_of(entry)
            if variable not in _holders or variable.get(_ABSENT) is _ABSENT:
                free[variable] = module, entry, variable.set(entry.user_override.get())
        try:
            result = original(*arguments, **options)
            values = [variable.get() for variable in free]
        finally:
            for variable, (_, _, token) in free.items():
                variable.reset(token)
        for (variable, (module, entry, _)), value in zip(free.items(), values, strict=True):
            before = entry.user_override
            if variable in _holders:
                entry.user_override = _Detour(variable, value)
            else:
                entry.user_override = _new_variable(entry, variable.name, value)
            if entry.user_override is not before:
                _assigned[module] = _assigned.get(module, 0) + 1
        return result


@_untraced
def _hold(pairs: Iterable[tuple[Any, Any]], original: Any, *arguments: Any) -> tuple[_Held, Any]:
    """Give the entries a value of their own in this context, the one that they have, and run ``original``."""
    held: _Held = []
    with _lock:
        for _, entry in pairs:
            variable = _variable_of(entry)
            _holders[variable] = _holders.get(variable, 0) + 1
            held.append((entry, variable, variable.set(entry.user_override.get())))
    try:
        return held, original(*arguments)
    except BaseException:
        _release(held)
        raise


@_untraced
def _release(held: _Held) -> None:
    with _lock:
        while held:
            entry, variable, token = held[-1]
            try:
                variable.reset(token)
            except ValueError:
                return  # this is a copy of the context that was patched, and there the patch goes on
            held.pop()
            left = _holders.pop(variable) - 1
            if left:
                _holders[variable] = left
            elif isinstance(entry.user_override, _Detour):
                entry.user_override = _new_variable(entry, variable.name, entry.user_override.value)


@_untraced
def _run_and_release(held: _Held, original: Any, *arguments: Any) -> Any:
    try:
        return original(*arguments)
    finally:
        _release(held)


@_untraced
def _entries(module: Any, names: Iterable[str]) -> list[tuple[Any, Any]]:
    """The entries behind ``names``, aliases followed, with their modules; unknown names are left to torch."""
    found = []
    for name in names:
        home, entry = module, module._config.get(name)
        while entry is not None and entry.alias is not None:
            home, target = home._get_alias_module_and_name(entry)
            entry = home._config.get(target) if hasattr(home, "_get_alias_module_and_name") else None
        if entry is not None:
            found.append((home, entry))
    return found


def _around(function: Any) -> Any:
    """Make what :func:`wrap` asks for of a function that takes the original in addition, in front."""

    def make(original: Any) -> Any:
        @_untraced
        def wrapper(*arguments: Any, **options: Any) -> Any:
            return function(original, *arguments, **options)

        return wrapper

    _untraced(function)
    return make


@_around
def _set_or_delete(original: Any, self: Any, name: str, *value: Any) -> Any:
    entry = self._config.get(name)
    if entry is None or entry.alias is not None:
        return original(self, name, *value)
    return _assign([(self, entry)], original, self, name, *value)


@_around
def _set_raw_values(original: Any, self: Any, changes: dict[str, Any], **options: Any) -> Any:
    return _assign(_entries(self, changes), original, self, changes, **options)


@_around
def _patch(original: Any, self: Any, *arguments: Any, **changes: Any) -> Any:
    result = original(self, *arguments, **changes)
    kind = type(result)
    if not is_ours(kind.__enter__):  # each call makes a class of its own
        kind.config, kind.__enter__, kind.__exit__ = self, _enter(kind.__enter__), _exit(kind.__exit__)
    return result


@_around
def _enter(original: Any, self: Any) -> Any:
    held, result = _hold(_entries(self.config, self.changes), original, self)
    _active.set((*_active.get(), (self, held)))
    return result


@_around
def _exit(original: Any, self: Any, *exception: Any) -> Any:
    active = _active.get()
    last = max((place for place, (patch, _) in enumerate(active) if patch is self), default=len(active))
    _active.set(active[:last] + active[last + 1 :])
    held = active[last][1] if last < len(active) else []
    return _run_and_release(held, original, self, *exception)


@_around
def _make_closure_patcher(original: Any, self: Any, **changes: Any) -> Any:
    return partial(_change, original(self, **changes), _entries(self, changes))


@_untraced
def _change(original: Any, entries: list[tuple[Any, Any]]) -> Any:
    return partial(_run_and_release, *_hold(entries, original))


@_around
def _up_to_date(original: Any, self: Any, *arguments: Any, **options: Any) -> Any:
    noticed, number = _noticed.get() or {}, _assigned.get(self, 0)
    if noticed.get(self, 0) != number:
        _noticed.set({**noticed, self: number})
        self._hash_dirty_var.set(True)
        self._get_dict_dirty_keys_var.set(None)
    return original(self, *arguments, **options)


@_around
def _set_up(original: Any, self: Any, *arguments: Any, **options: Any) -> None:
    original(self, *arguments, **options)
    _share_default(self)


@_untraced
def _share_default(entry: Any) -> None:
    """Copy a default that can be changed in place once for all, where torch would for each thread that reads it."""
    torchs, default = sys.modules[_CONFIG], entry.default
    elsewhere = entry.alias is not None or entry.justknob is not None or default is torchs._UNSET_SENTINEL
    if elsewhere or entry.env_value_default is not torchs._UNSET_SENTINEL:
        return
    if not isinstance(default, torchs._IMMUTABLE_CONFIG_TYPES):
        shared = copy.deepcopy(default)
        entry.user_override = ContextVar(entry.user_override.name, default=shared)


@contextmanager
def _kept_local(original: Any, *arguments: Any) -> Iterator[Any]:
    _, package, *names = _TEMPORARY[original.__module__].split()
    config = sys.modules[f"torch.{package}.config"]
    with config.patch({name: getattr(config, name) for name in names}), original(*arguments) as value:
        yield value


def apply(module: ModuleType) -> None:
    if module.__name__ != _CONFIG:
        wrap(module, _TEMPORARY[module.__name__].split()[0], _around(_kept_local))
        return
    config = module.ConfigModule
    for loaded in list(sys.modules.values()):
        if issubclass(type(loaded), config):
            for entry in vars(loaded)["_config"].values():
                value = entry.user_override.get()  # what the thread has assigned that now loads the compiler
                if value is module._UNSET_SENTINEL:
                    _share_default(entry)
                else:
                    entry.user_override = ContextVar(entry.user_override.name, default=value)
    wrap(module._ConfigEntry, "__init__", _set_up)
    wrap(config, "__setattr__", _set_or_delete)
    wrap(config, "__delattr__", _set_or_delete)
    wrap(config, "patch", _patch)
    wrap(config, "_make_closure_patcher", _make_closure_patcher)
    if hasattr(config, "_mark_get_dict_dirty"):  # 2.13 and later
        wrap(config, "get_hash", _up_to_date)
        wrap(config, "_get_dict", _up_to_date)
    if hasattr(config, "_set_raw_values"):  # 2.15
        wrap(config, "_set_raw_values", _set_raw_values)
        wrap(module._ImplicationConfigModule, "_make_closure_patcher", _make_closure_patcher)
        wrap(module._ImplicationConfigPatch, "__enter__", _enter)
        wrap(module._ImplicationConfigPatch, "__exit__", _exit)


def reproduce() -> None:
    import torch
    import torch._dynamo

    def scale(x: torch.Tensor, factor: int) -> torch.Tensor:
        return x * factor

    compiled = torch.compile(scale, backend="eager", dynamic=False, fullgraph=True)
    x = torch.arange(3.0)
    seen: list[Any] = []

    def work() -> None:
        try:
            seen.extend(compiled(x, factor) for factor in range(12))
        except Exception as error:
            seen.append(error)

    torch._dynamo.config.recompile_limit = 16
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    if isinstance(seen[-1], torch._dynamo.exc.FailOnRecompileLimitHit):
        raise BugPresent(f"a thread hit the recompile limit after {len(seen) - 1} compilations, it was set to 16")
    if isinstance(seen[-1], Exception):
        raise seen[-1]
    if not all(torch.equal(result, x * factor) for factor, result in enumerate(seen)):
        raise BugPresent(f"compiled {seen} differs from eager")


FIX = Fix(
    id="config-thread-visibility",
    title="torch._dynamo.config and other compile settings are ignored in every thread but the one that set them",
    kind="config",
    upstream=("pytorch/pytorch#186537", "pytorch/pytorch#173568", "unslothai/unsloth#7019", "Nerogar/OneTrainer#1511"),
    affects={"torch": ">=2.12.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(
        f"{_CONFIG}:ConfigModule.__setattr__",
        *(f"{home}:{names.partition(' ')[0]}" for home, names in _TEMPORARY.items()),
    ),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
