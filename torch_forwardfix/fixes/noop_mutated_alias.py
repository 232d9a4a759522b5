"""A copy that the compiler removes makes its result change with the source.

``x.clone()``, ``x * 1``, ``x + 0``, ``x.repeat(1, 1)`` or ``dst[:] = x[:]`` compute nothing, but they copy. Inductor
removes them and uses ``x`` itself. Where the graph mutates ``x`` later, what was to be the old value is the new one:
``dst[:] = src[:]; src.add_(1)`` copied the incremented source. And where the copy is returned, the result can be the
input itself, or two results one tensor, which an in-place operation on either shows.

Two passes do it. ``remove_no_ops`` (arithmetic) regards direct mutations since 2.12 (pytorch#174187, #174938), in turn
removes neutral numbers as well as tensors since 2.14, and has no regard for what is returned (pytorch#197893, open).
``remove_noop_ops`` (copies) regards mutations since 2.15 (pytorch#198131, #198132); what is returned it regards, but
not for the copy of a copy that it has just removed, nor for two copies of one tensor. The patch takes the copies that
are needed out of the sight of either pass while it runs; all others are removed as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_JOINT_GRAPH = "torch._inductor.fx_passes.joint_graph"
_POST_GRAD = "torch._inductor.fx_passes.post_grad"


def is_present(module: ModuleType) -> bool | str:
    name = "remove_no_ops" if module.__name__ == _JOINT_GRAPH else "remove_noop_ops"
    codes = list(code_objects(lookup(module, name)))
    names = {name for code in codes for name in code.co_names + code.co_varnames + code.co_cellvars}
    if "replace_all_uses_with" not in names or "erase_node" not in names:
        return f"{name} no longer removes nodes"
    if module.__name__ == _JOINT_GRAPH:
        return "get_node_storage" not in names and "output_storages" not in names
    if not {"noop_registry", "same_meta", "get_fake_args_kwargs"} <= names:
        return f"{name} no longer goes by noop_registry"
    return True


def apply(module: ModuleType) -> None:
    if module.__name__ == _JOINT_GRAPH:
        wrap(module, "remove_no_ops", _keep_arithmetic)
    else:
        wrap(module, "remove_noop_ops", lambda original: _keep_copies(original, module))


def _keep_arithmetic(original: Any) -> Any:
    removes_numbers = any("isScalarValue" in code.co_varnames + code.co_cellvars for code in code_objects(original))

    def is_removed(node: Any, source: Any) -> bool:
        return (removes_numbers or all(map(_is_node, node.args))) and _same_shape(node, source)

    def remove_no_ops(gm: Any, zeros: Any, ones: Any) -> None:
        with _out_of_sight(_needed_copies(gm.graph, lambda node: _unchanged(node, zeros, ones), is_removed)):
            original(gm, zeros, ones)

    return remove_no_ops


def _keep_copies(original: Any, module: ModuleType) -> Any:
    def source_of(node: Any) -> Any:
        if node.target not in module.noop_registry:
            return None
        _, source = module.noop_registry[node.target]
        if isinstance(source, int):
            return node.args[source]
        return source(node.args if source.__code__.co_varnames[0] == "args" else node)  # the node since 2.15

    def is_removed(node: Any, source: Any) -> bool:
        if source.meta.get("aot_runtime_epilogue_input_mutation"):
            return False  # 2.15 keeps copies of such inputs itself
        condition, _ = module.noop_registry[node.target]
        valid, args, kwargs = module.get_fake_args_kwargs(node)
        return bool(valid and module.same_meta(node, source) and condition(*args, **kwargs))

    def remove_noop_ops(graph: Any) -> None:
        with _out_of_sight(_needed_copies(graph, source_of, is_removed)):
            original(graph)

    return remove_noop_ops


def _needed_copies(graph: Any, source_of: Any, is_removed: Any) -> Iterator[Any]:
    mutated = _mutated_storages(graph)
    returned = {_storage(node) for output in graph.find_nodes(op="output") for node in output.all_input_nodes}
    taken = {_storage(node) for node in graph.find_nodes(op="placeholder")} | returned
    stands_for: dict[Any, Any] = {}  # a storage that is no more -> the one that took or will take its place
    for node in graph.nodes:
        source = _viewed(node)
        # A view of another storage than its own: it was a copy's, which an earlier pass has removed.
        stale = source is not None and _storage(source) != _storage(node)
        source = source if stale else source_of(node)
        if not _is_node(source) or _storage(source) == _storage(node):
            continue
        original, copy = _storage(source), _storage(node)
        original = stands_for.get(original, original)
        if not stale and (original in mutated or (copy in returned and original in taken)):
            yield node
        elif stale or is_removed(node, source):
            stands_for[copy] = original
            if copy in returned:
                returned.add(original)
                taken.add(original)


def _viewed(node: Any) -> Any:
    """What ``node`` is a view of, None where it is something else than a view."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable or not node.args or not schema.arguments[0].alias_info:
        return None
    has_storage = _is_node(node.args[0]) and all(isinstance(_storage(one), int) for one in (node, node.args[0]))
    return node.args[0] if has_storage else None


def _unchanged(node: Any, zeros: Any, ones: Any) -> Any:
    """What ``node`` returns unchanged, None where it computes something."""
    import torch

    aten = torch.ops.aten
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        neutral, neutrals = 0, zeros
    elif node.target in (aten.mul.Tensor, aten.div.Tensor):
        neutral, neutrals = 1, ones
    else:
        return None
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return None
    first, second = node.args
    if node.target in (aten.add.Tensor, aten.mul.Tensor) and (first in neutrals or first == neutral):
        source = second
    elif second in neutrals or second == neutral:
        source = first
    else:
        return None
    # Of another type, a conversion takes its place, which copies; a symbolic number takes no tensor's place.
    same_type = _is_node(source) and getattr(source.meta.get("val"), "dtype", None) == node.meta["val"].dtype
    return source if same_type else None


def _same_shape(node: Any, source: Any) -> bool:
    from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq

    return bool(guard_or_false(sym_eq(source.meta["val"].shape, node.meta["val"].shape)))


def _mutated_storages(graph: Any) -> set[Any]:
    storages = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            for position, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
                    for value in written if isinstance(written, (list, tuple)) else [written]:
                        if _is_node(value):
                            storages.add(_storage(value))
    return storages


def _storage(node: Any) -> Any:
    """What identifies the storage of ``node``; a node without one has it to itself."""
    from torch._inductor.fx_utils import get_node_storage

    storage = get_node_storage(node)
    return node if storage is None else storage


def _is_node(value: Any) -> bool:
    import torch

    return isinstance(value, torch.fx.Node)


@contextmanager
def _out_of_sight(nodes: Iterable[Any]) -> Iterator[None]:
    # Both passes go by the target. The graph stays as it is otherwise, so what remains is the original operation,
    # which can do more than a clone: -0.0 + 0 is 0.0.
    targets = {node: node.target for node in nodes}
    for node in targets:
        node.target = _hidden
    try:
        yield
    finally:
        for node, target in targets.items():
            node.target = target


def _hidden(*_: Any, **__: Any) -> None:
    """The target of nodes that are out of sight."""


def reproduce() -> None:
    import torch

    def copies(source: torch.Tensor, target: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, ...]:
        plus_zeros = source + torch.zeros(3, 3)
        target[0:, :] = source[0:, :]
        source.copy_(other @ other)
        return plus_zeros, other * torch.ones(3, 3)

    numbers = torch.arange(27.0).reshape(3, 3, 3)
    expected = list(numbers.clone())
    expected += copies(*expected)
    inputs = list(numbers.clone())
    # For a few small C++ kernels, precompiling torch's headers takes longer than the kernels do.
    compiled = torch.compile(copies, options={"cpp_cache_precompile_headers": False})
    found = [*inputs, *compiled(*inputs)]
    names = ("source", "target[0:, :] = source[0:, :]", "other", "source + zeros", "other * ones")
    for name, left, right in zip(names, found, expected, strict=True):
        if not torch.equal(left, right):
            raise BugPresent(f"{name} shows what was written to the source later: {left.tolist()}")
    if found[-1] is found[2]:
        raise BugPresent("other * ones is returned as other itself: what is written to one shows in both")


FIX = Fix(
    id="noop-mutated-alias",
    title="a copy (clone, slice copy, x * 1, x + 0) is removed: its result changes when the source is written to",
    kind="wrong-result",
    upstream=(
        "pytorch/pytorch#174187",
        "pytorch/pytorch#174938",
        "pytorch/pytorch#198131",
        "pytorch/pytorch#198132",
        "pytorch/pytorch#197893",
    ),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"{_JOINT_GRAPH}:remove_no_ops", f"{_POST_GRAD}:remove_noop_ops"),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
