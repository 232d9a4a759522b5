import ast
from importlib.metadata import version

from conftest import check, in_range

# Prints, for each function, the values for which the compiled result is not exactly eager's, and what the AOTAutograd
# cache was asked. `empty * s` stands for any use that leaves s a symbol; the operators that need its value are those
# that inductor calls in ATen: no kernel has to be compiled.
PROGRAM = """
import importlib, sys
import torch, torch._dynamo
import torch._functorch.config
import torch.nn.functional as F
from torch._dynamo.utils import counters

# 2.9 would compile C++ code for guards on floats, for half a minute.
torch._dynamo.config.enable_cpp_symbolic_shape_guards = False
empty = torch.zeros(0, dtype=torch.float64)
keys = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

def plain(x, s):
    return x @ x

def symbol(x, s):
    return empty * s, x @ x

def branch(x, s):
    return (empty * s, x @ x) if s > 0.05 else (empty + s, x.T)

def product(x, s):
    return empty * s, torch.addmm(x, x, x, alpha=s, beta=s + 1.0)

def attention(x, s):
    return empty * s, F.scaled_dot_product_attention(x[None, None], keys, keys, scale=s + 1.0)

def distance(x, s):
    return empty * s, torch.cdist(x, x, p=s + 1.0)

class Module(torch.nn.Module):
    s = 0.0
    def forward(self, x, s):
        return product(x, self.s)

module = Module()

def compare(name, function, *shapes, requires_grad=False, **options):
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, **options)
    wrong = []
    for s in map(float, sys.argv[1:]):
        for seed, shape in enumerate(shapes or [(4, 4)]):
            torch.manual_seed(seed)
            x = torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)
            module.s = s
            gradients = []
            results = [compiled(x, s), function(x, s)]
            if requires_grad:
                gradients = [torch.autograd.grad(each[1].sum(), x)[0] for each in results]
            if not all(map(torch.equal, *results)) or (gradients and not torch.allclose(*gradients, 1e-12, 1e-14)):
                wrong.append((s, shape))
    asked = {kind: counters["aot_autograd"]["autograd_cache_" + kind] for kind in ("hit", "miss", "bypass")}
    print((name, wrong, *asked.values()))

compare("plain", plain)
compare("symbol", symbol)
compare("branch", branch)
compare("product", product)
compare("product, sizes", product, (4, 4), (3, 3), dynamic=True)
compare("attention", attention)
compare("attention, training", attention, requires_grad=True)
compare("distance", distance)
compare("module", module)
with torch._functorch.config.patch(bundled_autograd_cache=True, strict_autograd_cache=True):
    compare("bundled", attention)
compare("aot_eager", attention, backend="aot_eager")
cache = importlib.import_module("torch._functorch._aot_autograd.autograd_cache")
print(hasattr(cache.autograd_cache_key, "__wrapped__"))
"""
RELEASE = tuple(map(int, version("torch").split(".")[:2]))
ID = "symfloat-stale-cache"


def run(python, *values, **environment):
    *lines, wrapped = check(python(PROGRAM, *map(str, values), **environment)).splitlines()
    rows = [ast.literal_eval(line) for line in lines]
    return {row[0]: row[1] for row in rows if row[1]}, {row[0]: row[2:] for row in rows}, wrapped


def hit_and_miss(asked, name):
    hits, misses, bypasses = asked[name]
    assert bypasses == 0
    # In 2.15 the first attempt with the float as a symbol is taken back, and asks the cache once more.
    retried = RELEASE >= (2, 15) and name in ("product", "product, sizes", "module")
    return hits, misses - retried


def test_every_value_counts_in_a_cold_and_in_a_warm_cache(python):
    wrong, asked, wrapped = run(python, 0.1, 0.2, 0.3, 0.4)
    assert wrong == {}
    assert wrapped == str(in_range(ID))
    for name in ("product", "product, sizes", "attention", "attention, training", "distance", "bundled"):
        assert hit_and_miss(asked, name) == (0, 4), name

    # 0.5 is new, and comes between values that the cache has.
    wrong, asked, _ = run(python, 0.1, 0.3, 0.5, 0.4)
    assert wrong == {}
    for name in ("product", "product, sizes", "attention", "attention, training", "distance", "module", "bundled"):
        assert hit_and_miss(asked, name) == (3, 1), name
    # What does not depend on the value is compiled once with it and once for all others.
    assert asked["symbol"] == asked["branch"] == (2, 0, 0)
    assert asked["plain"] == (1, 0, 0)


def test_entries_of_an_unpatched_process_are_taken_only_where_they_are_right(python):
    wrong, _, wrapped = run(python, 0.1, 0.2, 0.3, 0.4, TORCH_FORWARDFIX="0")
    assert wrapped == "False"
    stale = [(0.3, (4, 4)), (0.4, (4, 4))]
    expected = dict.fromkeys(("attention", "attention, training", "distance", "bundled"), stale)
    if RELEASE < (2, 15):
        expected |= dict.fromkeys(("product", "module"), stale)
        expected["product, sizes"] = [(s, shape) for s in (0.2, 0.3, 0.4) for shape in ((4, 4), (3, 3))]
    assert wrong == (expected if in_range(ID) else {})

    # Alone: fixes that change generated code keep to entries of their own.
    wrong, asked, _ = run(python, 0.1, 0.3, 0.5, 0.4, TORCH_FORWARDFIX_ONLY=ID)
    assert wrong == {}
    assert asked["plain"] == (1, 0, 0)
    if in_range(ID):
        for name in ("product", "attention", "attention, training", "distance", "module", "bundled"):
            assert hit_and_miss(asked, name) == (1, 3), name  # that of the first value, which is no symbol yet
