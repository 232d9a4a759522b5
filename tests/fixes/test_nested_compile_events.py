import ast

from conftest import check, in_range

ID = "nested-compile-events"

# Prints a name, what came of it, how many warnings there were and what was left, for each compile inside a compile.
PROGRAM = """
import logging
import torch
import torch._dynamo
from torch._dynamo.utils import get_chromium_event_logger
from torch.utils._pytree import tree_map_only

# 2.9 would compile C++ code for guards on sizes, for half a minute.
torch._dynamo.config.enable_cpp_symbolic_shape_guards = False
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("torch._dynamo.utils").addHandler(handler)

inner = torch.compile(lambda x: x.cos() @ x, backend="eager")

def compile_another(size=[0]):
    size[0] += 1
    torch._dynamo.mark_static(x := torch.ones(size[0], size[0]))
    inner(x)

def function(x):
    return (x.sin() + x) @ x

class Labelled(torch.Tensor):
    @staticmethod
    @torch._dynamo.disable  # 2.9 would compile it, and fail
    def __new__(cls, inner, label):
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())
        self.inner, self.label = inner, label
        return self
    def __tensor_flatten__(self):
        return ["inner"], self.label
    @staticmethod
    def __tensor_unflatten__(inner, label, size, stride):
        return Labelled(inner["inner"], label)
    @classmethod
    def __metadata_guard__(cls, one, other):
        compile_another()
        return one == other
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        result = func(*tree_map_only(Labelled, lambda each: each.inner, args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, lambda each: Labelled(each, "label"), result)

def keep_all(guards):
    compile_another()
    return [True for _ in guards]

def nested(guards):
    filtered = {"guard_filter_fn": keep_all}
    torch.compile(lambda x: x @ x @ x, backend="eager", options=filtered)(torch.ones(2, 2))
    return [True for _ in guards]

def failing(guards):
    def refuse(gm, inputs):
        raise NotImplementedError("this back end refuses")
    try:
        torch.compile(lambda x: x - 1, backend=refuse)(torch.ones(2))
    except torch._dynamo.exc.BackendCompilerFailed:
        pass
    return [True for _ in guards]

def back_end(gm, inputs):
    compile_another()
    return gm.forward

def label(x):
    return Labelled(x, "label")

def attempt(name, wrapped=torch.Tensor.clone, **options):
    torch._dynamo.reset()
    said.clear()
    outcome = "right"
    try:
        compiled = torch.compile(function, **{"backend": "eager", **options})
        for rows in (2, 3, 4):
            x = torch.randn(rows, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
            results = [each(wrapped(x)) for each in (compiled, function)]
            assert torch.equal(*(each.inner if wrapped is label else each for each in results))
    except Exception as error:
        outcome = "no event" if "No toplevel event active" in str(error) else type(error).__name__
    logger = get_chromium_event_logger()
    left = [logger.get_stack(), logger.get_pt2_compile_substack(), list(logger.get_event_data())]
    left += [list(logger.get_record_functions())] if hasattr(logger, "get_record_functions") else []
    print((name, outcome, len(said), [each for each in left if each]))

attempt("guard filter", options={"guard_filter_fn": keep_all})
attempt("nested twice", options={"guard_filter_fn": nested})
attempt("inner one fails", options={"guard_filter_fn": failing})
attempt("subclass", label, backend="aot_eager")
attempt("back end", backend=back_end)
attempt("dynamic", dynamic=True, options={"guard_filter_fn": keep_all})
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    attempt("profiled", options={"guard_filter_fn": keep_all})
attempt("plain")
attempt("plain, aot_eager", backend="aot_eager")

# Called by others, reset() empties the stack as it always did.
logger = get_chromium_event_logger()
logger.get_stack().append("something")
logger.reset()
print(("reset", "right", 0, logger.get_stack()))
print(("wrapped", hasattr(type(logger).reset, "__wrapped__"), 0, []))
"""
NESTED = {"guard filter", "nested twice", "inner one fails", "dynamic", "profiled"}


def outcomes(process):
    rows = [ast.literal_eval(line) for line in check(process).splitlines() if line[0] == "("]
    return {name: tuple(rest) for name, *rest in rows}


def test_a_compile_may_run_inside_another_and_leaves_nothing_behind(python):
    patched, unpatched = outcomes(python(PROGRAM)), outcomes(python(PROGRAM, TORCH_FORWARDFIX="0"))
    assert patched.pop("wrapped")[0] is in_range(ID)
    assert unpatched.pop("wrapped")[0] is False
    assert patched == dict.fromkeys(patched, ("right", 0, []))
    if in_range(ID):
        assert {name for name, (outcome, *_) in unpatched.items() if outcome == "no event"} >= NESTED
        assert unpatched["back end"][1] > 0  # warnings
        assert {name: unpatched[name] for name in ("plain", "plain, aot_eager", "reset")} == dict.fromkeys(
            ("plain", "plain, aot_eager", "reset"), ("right", 0, [])
        )
    else:
        assert unpatched == patched
