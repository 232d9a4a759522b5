import ast

from conftest import check, in_range

ID = "slice-recompile"

# Prints how many graphs were compiled for five lengths, for each way to ask what a slice is.
COUNTS = """
import functools
import torch
import torch._dynamo

torch._dynamo.config.recompile_limit = 32
# 2.9 to 2.12 would compile C++ code for guards on sizes, for half a minute.
torch._dynamo.config.enable_cpp_symbolic_shape_guards = False
LENGTHS = range(5, 10)
x = torch.arange(40.0, dtype=torch.float64).reshape(20, 2)
cases = {}

def case(function):
    cases[function.__name__] = function
    return function

@case
def key_is_none(x, n):
    key = slice(n)
    return x if key is None else x[key] * 2

@case
def none_is_not_key(x, n):
    key = slice(n, None)
    return x[key] * 2 if None is not key else x

@case
def key_is_ellipsis(x, n):
    key = slice(1, n, 2)
    return x if key is ... else x[key] * 2

class Masked:
    def __init__(self, x):
        self.x = x
    def __getitem__(self, key):
        return self.x if key is None or key is Ellipsis else self.x[key]

@case
def in_getitem(x, n):
    return Masked(x)[2:n] * 2

@case
def any_of_the_keys(x, n):
    keys = slice(0, n), slice(0, 1)
    return x if any(key is None for key in keys) else x[keys] * 2

@case
def is_the_tensor(x, n):
    key = slice(n)
    return x[key] * (2 if key is x else 3)

@case
def is_a_class_or_a_list(x, n):
    key = slice(n)
    return x[key] * (2 if key is slice or key is [] or key is len else 3)

@case
def is_itself(x, n):
    key = slice(n)
    return x[key] * (2 if key is key else 3)

@case
def is_another_slice(x, n):
    key = slice(n)
    return x[key] * (2 if key is slice(n) else 3)

@case
def equals_none(x, n):
    key = slice(n)
    return x[key] * (2 if key == None else 3)

@case
def is_in_a_tuple(x, n):
    key = slice(n)
    return x[key] * (2 if key in (None, ...) else 3)

@case
def is_a_slice(x, n):
    key = slice(n)
    return x[key] * (2 if isinstance(key, slice) and type(key) is slice and key.stop is not None else 3)

@case
def of_a_list(x, n):
    key = slice(n)
    return x * (len([*range(12)][key]) if key is not None else 3)

@case
def range_is_none(x, n):
    key = range(n)
    return x[:n] * (2 if key is None else 3)

@case
def number_is_none(x, n):
    return x if n is None else x[:n] * 3

@case
def constant_slice_is_none(x, n):
    key = slice(3)
    return x[:n] if key is None else x[key] * n

def graphs(function, calls, **options):
    torch._dynamo.reset()
    found = []
    def count(gm, inputs):
        found.append(gm)
        return gm.forward
    compiled = torch.compile(function, backend=count, fullgraph=True, **options)
    for arguments in calls:
        result, expected = compiled(*arguments), function(*arguments)
        assert result.shape == expected.shape and torch.equal(result, expected), (function, arguments)
    return len(found)

for name, function in cases.items():
    print((name, graphs(function, [(x, n) for n in LENGTHS])))
for name in ("key_is_none", "in_getitem", "is_another_slice", "equals_none"):
    print((name + ", dynamic", graphs(cases[name], [(x, n) for n in LENGTHS], dynamic=True)))
    print((name + ", static", graphs(cases[name], [(x, n) for n in LENGTHS], dynamic=False)))

def given(x, key):
    return x + 1 if key is None else x[key] * 2

print(("given", graphs(given, [(x, slice(n)) for n in LENGTHS])))
print(("given, both bounds", graphs(given, [(x, slice(n - 4, n + 4)) for n in LENGTHS])))

def size_of_another(x, y):
    key = slice(y.shape[0])
    return x if key is None else x[key] * 2

print(("size", graphs(size_of_another, [(x, torch.ones(n)) for n in LENGTHS])))
marked = [(x, torch.ones(n)) for n in LENGTHS]
for _, y in marked:
    torch._dynamo.mark_dynamic(y, 0)
try:
    print(("marked", graphs(size_of_another, marked)))
except Exception as error:
    assert "Constraints violated" in str(error), error
    print(("marked", "violated"))

def from_a_tensor(x, n):
    key = slice(n.item())
    return x if key is None else x[key] * 2

torch._dynamo.config.capture_scalar_outputs = True
print(("item", graphs(from_a_tensor, [(x, torch.tensor(n)) for n in LENGTHS])))
"""
IDENTITY = (
    "key_is_none",
    "none_is_not_key",
    "key_is_ellipsis",
    "in_getitem",
    "any_of_the_keys",
    "is_a_class_or_a_list",
)
# As many graphs as in 2.12, which did not look into slices.
EXPECTED = {
    **dict.fromkeys(IDENTITY, 2),
    **{"key_is_none, dynamic": 1, "in_getitem, dynamic": 1},
    **{"given": 2, "given, both bounds": 2, "size": 2, "marked": 1, "item": 1},
}


def counts(process):
    return dict(ast.literal_eval(line) for line in check(process).splitlines() if line[0] == "(")


def test_a_slice_compared_by_identity_is_compiled_once_for_all_lengths(python):
    patched, unpatched = counts(python(COUNTS)), counts(python(COUNTS, TORCH_FORWARDFIX="0"))
    assert {name: patched[name] for name in EXPECTED} == EXPECTED
    if in_range(ID):
        wrong = {name: unpatched.pop(name) for name in EXPECTED}
        assert wrong.pop("marked") == "violated"
        assert wrong == dict.fromkeys(wrong, 5)
        patched = {name: count for name, count in patched.items() if name not in EXPECTED}
    assert patched == unpatched


# One compiled function, called with whatever a key can be, in several orders.
KEYS = """
import itertools, random, sys
import torch
import torch._dynamo

torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
# 2.9 to 2.12 would compile C++ code for guards on sizes, for half a minute.
torch._dynamo.config.enable_cpp_symbolic_shape_guards = False
x = torch.arange(36.0, dtype=torch.float64).reshape(12, 3)
weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]], dtype=torch.float64)
bounds = None, 0, 1, 2, 5, 11, 12, 13, -1, -3, -12, -20
keys = [slice(start, stop) for start, stop in itertools.product(bounds, bounds)]
keys += [slice(start, stop, step) for start, stop, step in itertools.product((None, 1, -4), (None, 9, -2), (1, 2, 3))]
keys += [None, ..., slice(True, 5), slice(2**40), slice(-(2**40), 3)]

def given(x, key):
    if key is None:
        return x + 1
    if key is ...:
        return x + 2
    return x[key] @ weight

def built(x, start, stop, step):
    key = slice(start, stop, step)
    return x[key] @ weight if key is not None else x

def closed(x):
    key = held[0]
    return x + 1 if key is None else x[key] @ weight

def pair(x, one, other):
    return x[one] @ weight if one is not other and one is not None else x @ weight

def same(result, expected):
    return result.shape == expected.shape and torch.equal(result, expected)

def try_all():
    global held
    for seed, options in enumerate((dict(), dict(dynamic=True), dict(dynamic=False))):
        torch._dynamo.reset()
        order = random.Random(seed).sample(keys, 8) + [None, slice(-3, None), slice(3), slice(0)]
        compiled = torch.compile(given, backend="eager", **options)
        for key in order:
            assert same(compiled(x, key), given(x, key)), (options, key)
        compiled = torch.compile(built, backend="eager", **options)
        for key in order:
            if isinstance(key, slice):
                arguments = key.start, key.stop, key.step
                assert same(compiled(x, *arguments), built(x, *arguments)), (options, key)
    held = [None]
    compiled = torch.compile(closed, backend="aot_eager")
    for held[0] in [key for key in order if key is not ...]:
        assert same(compiled(x), closed(x)), held
    compiled = torch.compile(pair, backend="eager")
    for one, other in zip(order, order[1:] + [None]):
        if isinstance(one, slice) and one is not other:
            assert same(compiled(x, one, other), pair(x, one, other)), (one, other)

if not sys.argv[1:]:
    try_all()

# Inductor, and gradients through a slice of a length that changes.
torch._dynamo.reset()
compiled = torch.compile(given)
for key in (slice(4), slice(5), slice(7), slice(2, 6), slice(-3, None), slice(6), slice(0)):
    assert same(compiled(x, key), given(x, key)), key
leaf = x.clone().requires_grad_()
for stop in (3, 5, 8):
    gradients = []
    for function in (compiled, given):
        leaf.grad = None
        function(leaf, slice(stop)).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
print("done")
"""


def test_compiled_code_is_never_used_for_a_slice_that_it_does_not_fit(python):
    assert check(python(KEYS)) == "done\n"
    assert check(python(KEYS, "inductor alone, from warm caches")) == "done\n"


# Unpatched torch that is loaded already: both modules that know the function are patched.
LATE = """
import os
import torch
import torch._dynamo.variables.builtin as builtin
import torch._dynamo.variables.user_defined
import torch_forwardfix

del os.environ["TORCH_FORWARDFIX"]
torch_forwardfix.activate()
def first(x, n):
    key = slice(n)
    return x if key is None else x[key] * 2
graphs = []
compiled = torch.compile(first, backend=lambda gm, inputs: graphs.append(gm) or gm.forward)
for n in range(3, 8):
    assert compiled(torch.arange(9), n).tolist() == [2 * i for i in range(n)]
compare = getattr(builtin, "vt_identity_compare", None)
print(len(graphs), hasattr(compare, "__wrapped__"))
"""


def test_late_is_as_good_and_out_of_range_nothing_is_wrapped(python):
    assert check(python(LATE, TORCH_FORWARDFIX="0")) == f"2 {in_range(ID)}\n"
