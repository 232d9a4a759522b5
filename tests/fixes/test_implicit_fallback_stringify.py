import ast

from conftest import check, in_range

ID = "implicit-fallback-stringify"

# Compiles chains of custom operators that have no lowering, and counts what is rendered of them.
CHAIN = """
import itertools, logging, sys
import torch
import torch._dynamo

# 2.9 to 2.12 would compile C++ code for guards on sizes, for half a minute.
torch._dynamo.config.enable_cpp_symbolic_shape_guards = False
library = torch.library.Library("chain", "FRAGMENT")
numbers = itertools.count()

def add(scale):
    name = f"add_{next(numbers)}"
    library.define(f"{name}(Tensor x, Tensor y, *, float scale=1.0) -> Tensor")
    library.impl(name, lambda x, y, *, scale=1.0: x + scale * y, "CompositeExplicitAutograd")
    op = getattr(torch.ops.chain, name)
    return lambda x, y: op(x, y, scale=scale)

def straight(depth):
    ops = [add(0.5) for _ in range(depth)]
    def chain(x, y):
        for op in ops:
            x = op(x, y)
        return x
    return chain

def residual(depth):
    ops = [add(0.25) for _ in range(depth)]
    def chain(x, y):
        for op in ops:
            x = op(x, x)
        return x @ y
    return chain

def count_rendered(call):
    rendered = []
    def count(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_name == "__str__" and code.co_filename.endswith("ir.py"):
            rendered.append(code)
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(rendered)

def attempt(make, depth, seed=0, size=3, **options):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, size, dtype=torch.float64, generator=generator) for _ in range(2))
    chain = make(depth)
    results = []
    compiled = torch.compile(chain, fullgraph=True, **options)
    rendered = count_rendered(lambda: results.append(compiled(x, y)))
    assert torch.equal(results[0], chain(x, y)), (make, depth, options)
    return rendered
"""

GROWTH = (
    CHAIN
    + """
print({depth: attempt(straight, depth) for depth in (3, 6, 9)})
print({depth: attempt(residual, depth, seed=1, size=5) for depth in (2, 4, 6)})
assert attempt(residual, 6, backend="aot_eager") == 0
# What is known by now is not described again.
chain = residual(3)
known = lambda depth: chain
assert attempt(known, 3) == 0 or sys.argv[1:]
assert attempt(known, 3, seed=2, size=4) == 0
import torch._inductor.graph
errors = torch._inductor.graph.MissingOperatorWithDecomp, torch._inductor.graph.MissingOperatorWithoutDecomp
print(["operator_str" in vars(error) for error in errors])
"""
)


def test_chains_of_custom_operators_compile_without_being_rendered(python):
    patched = [ast.literal_eval(line) for line in check(python(GROWTH)).splitlines()]
    unpatched = [
        ast.literal_eval(line) for line in check(python(GROWTH, "may render", TORCH_FORWARDFIX="0")).splitlines()
    ]
    assert patched == [dict.fromkeys((3, 6, 9), 0), dict.fromkeys((2, 4, 6), 0), [in_range(ID)] * 2]
    if in_range(ID):
        straight, residual, wrapped = unpatched
        assert straight[9] > 2 * straight[6] > 4 * straight[3] > 0
        assert residual[6] > 3 * residual[4] > 9 * residual[2] > 0
        assert wrapped == [False] * 2
    else:
        assert unpatched == patched


# The line is written where it is asked for, and errors say what they said.
SAID = (
    CHAIN
    + """
import re
from torch._inductor import config
from torch._inductor.graph import MissingOperatorWithDecomp, MissingOperatorWithoutDecomp

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
log = logging.getLogger("torch._inductor.graph")
log.addHandler(handler)
log.setLevel(logging.INFO)
attempt(residual, 2)
attempt(straight, 2)
log.setLevel(logging.WARNING)
print([line for line in said if "implicit fallback" in line])

try:
    with config.patch(implicit_fallbacks=False):
        attempt(residual, 1)
except Exception as error:
    print(re.sub(r"0x[0-9a-f]+", "ADDRESS", str(error).partition("Set TORCH")[0]))
else:
    raise AssertionError("there is no lowering")

# The errors live on in another module.
import importlib, torch._inductor.graph
importlib.reload(torch._inductor.graph)
for error in (MissingOperatorWithDecomp, MissingOperatorWithoutDecomp):
    print(error("aten.one", [1, "two"], {"three": 3}))
    text = error.operator_str("aten.one", [1, "two"], {"three": 3})
    print(text, str(text).count("two"), f"{text:s}" if isinstance(text, str) else f"{text}", sep=" | ")
"""
)


def test_the_log_and_the_errors_say_what_they_said(python):
    patched, unpatched = check(python(SAID)), check(python(SAID, TORCH_FORWARDFIX="0"))
    assert patched == unpatched
    assert patched.count("Creating implicit fallback for") == 4
    assert "missing lowering" in patched
    assert "three" in patched
