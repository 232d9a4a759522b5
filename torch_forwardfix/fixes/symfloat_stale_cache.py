"""A Python float that changes between calls keeps its old value in what the AOTAutograd cache serves.

From its second value on, a float argument is traced as a symbol. Where an operator needs the number, as in
``torch.where(x > s, x, s)`` or an ``eps``, the value of that moment is burned in, with a guard that compiles anew for
others. But the graph in the cache key is the same for each value, and entries are stored with guards on sizes alone. So
the next compile gets the entry of an earlier value; and on a hit, where nobody traces, the guard is not set up at all.

2.15 takes floats that are used both ways out of the graph first (pytorch#195040); those that dynamo's own tracing has
burned in are still open (pytorch#197889). The patch makes the guards on floats that are there before AOTAutograd traces
a part of the key. Those that come later are stored with the entry and set up anew on a hit, like the guards on sizes.
A float that stays a symbol is served for every value, as before. Graphs without floats keep their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_KEY = "autograd_cache_key"
_GUARDS = "AOTAutogradCache.generate_guards_expression"
_EVALUATE = "AOTAutogradCache.evaluate_guards"


class _Floats:
    """The floats that a graph reads, symbol and value, and the guards on floats before AOTAutograd traced it."""

    def __init__(self, traced: list[tuple[Any, float]], known: list[Any]) -> None:
        self.traced = traced
        self.known = known


# By the ShapeEnv of a compile and by cache key, the latest last. It holds symbols and not SymFloats, which would keep
# the ShapeEnv alive.
_floats: WeakKeyDictionary[Any, dict[str, _Floats]] = WeakKeyDictionary()


def is_present(module: ModuleType) -> bool | str:
    for target, kind, expected in (
        (_KEY, FunctionType, "get_hash"),
        (_GUARDS, classmethod, "forward_symints"),
        (_EVALUATE, staticmethod, "evaluate_guards_expression"),
    ):
        found = lookup(module, target)
        if not isinstance(found, kind):
            return f"{target} is no longer a {kind.__name__}"
        names = {name for code in code_objects(found) for name in code.co_names}
        if any("symfloat" in name.lower() for name in names):
            return False
        if expected not in names:
            return f"{target} no longer uses {expected}"
    return True


def apply(module: ModuleType) -> None:
    wrap(module, "autograd_cache_key", functools.partial(_key_with_floats, module))
    cache = module.AOTAutogradCache
    wrap(cache, "generate_guards_expression", _guards_with_floats)
    wrap(cache, "evaluate_guards", functools.partial(_evaluate_with_floats, cache))


def _key_with_floats(module: ModuleType, original: Any) -> Any:
    def autograd_cache_key(mod: Any, *args: Any, **kwargs: Any) -> Any:
        import sympy  # type: ignore[import-not-found,import-untyped,unused-ignore]

        key, debug_lines = original(mod, *args, **kwargs)
        floats = list(_backed_floats(getattr(mod, "gm", mod)))
        if floats:
            shape_env = floats[0].node.shape_env
            found = {node._expr: float(node.hint) for node in (value.node for value in floats) if node._expr.is_Symbol}
            known = _float_guards(shape_env)
            # srepr: str would drop the last digits of floats.
            read = [sympy.srepr(value.node._expr) for value in floats]
            content = "\n".join([key, *read, "guards", *map(sympy.srepr, known)])
            key = "a" + module.sha256_hash(content.encode())
            by_key = _floats.setdefault(shape_env, {})
            by_key.pop(key, None)
            by_key[key] = _Floats(list(found.items()), known)
        return key, debug_lines

    return autograd_cache_key


def _guards_with_floats(original: Any) -> Any:
    def generate_guards_expression(cls: Any, cache_info: Any) -> Any:
        expression = original(cls, cache_info)
        shape_env = cls._get_shape_env()
        floats = _floats.get(shape_env, {}).get(cache_info.cache_key) if shape_env is not None else None
        if floats is None:
            return expression
        symbols = {s for guard in _float_guards(shape_env) if guard not in floats.known for s in guard.free_symbols}
        nodes = [symint.node for symint in cache_info.forward_symints]
        inputs = [(node._expr, node.hint) for node in nodes] + floats.traced
        pins = {symbol: f"L['t{i}'] == {value!r}" for i, (symbol, value) in enumerate(inputs)}
        # A symbol that is no input cannot be asked for its value: nobody may have this entry.
        pinned = [pins.get(symbol, "False") for symbol in sorted(symbols, key=str)]
        return " and ".join([*([expression] if expression else []), *pinned]) or None

    return generate_guards_expression


def _evaluate_with_floats(cache: Any, original: Any) -> Any:
    def evaluate_guards(guard_expr: str, hints: Any) -> Any:
        shape_env = cache._get_shape_env()
        by_key = _floats.get(shape_env) if shape_env is not None else None
        if not by_key:
            return original(guard_expr, hints)
        traced = by_key[next(reversed(by_key))].traced
        if not original(guard_expr, [*hints, *(value for _, value in traced)]):
            return False
        # This entry is going to be used: asked of the symbols, the same question sets up the guards.
        symbols = [shape_env.create_symfloatnode(symbol, hint=value) for symbol, value in traced]
        return original(guard_expr, [*hints, *symbols])

    return evaluate_guards


def _backed_floats(gm: Any) -> Iterator[Any]:
    """Yield the SymFloats of a graph that stem from floats of the user, in the order of its nodes."""
    import torch

    for module in gm.modules() if isinstance(gm, torch.nn.Module) else ():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                value = node.meta.get("example_value", node.meta.get("val"))
                if isinstance(value, torch.SymFloat) and _has_float(value.node._expr):
                    yield value


def _float_guards(shape_env: Any) -> list[Any]:
    return [guard.expr for guard in shape_env.guards if _has_float(guard.expr)]


def _has_float(expression: Any) -> bool:
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    return any(symbol_is_type(symbol, SymT.FLOAT) for symbol in expression.free_symbols)


def reproduce() -> None:
    import torch
    import torch._dynamo

    # 2.9 would compile C++ code for guards on floats, for half a minute.
    torch._dynamo.config.enable_cpp_symbolic_shape_guards = False

    # x[:0] * s stands for any use that leaves s a symbol; being empty, it needs no kernel.
    def product(x: torch.Tensor, s: float) -> Any:
        return x[:0] * s, torch.addmm(x, x, x, alpha=s)

    def attention(x: torch.Tensor, s: float) -> Any:
        heads = x[None, None]
        return x[:0] * s, torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, scale=s + 1.0)

    x = torch.arange(16.0, dtype=torch.float64).reshape(4, 4) / 16
    for function in (product, attention):
        torch._dynamo.reset()  # floats that were taken out of one graph are not tried in the next
        compiled = torch.compile(function)
        for s in (0.1, 0.2, 0.3, 0.4):
            result, expected = compiled(x, s)[1], function(x, s)[1]
            if not torch.equal(result, expected):
                last, right = result.flatten()[-1].item(), expected.flatten()[-1].item()
                raise BugPresent(f"{function.__name__} under s={s} gives {last:.6f}, eager {right:.6f}")


FIX = Fix(
    id="symfloat-stale-cache",
    title="a Python float argument that changes between runs silently keeps its old value",
    kind="wrong-result",
    upstream=("pytorch/pytorch#194976", "pytorch/pytorch#195040", "pytorch/pytorch#197889"),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=tuple(f"torch._functorch._aot_autograd.autograd_cache:{name}" for name in (_KEY, _GUARDS, _EVALUATE)),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
