import re

from conftest import check, in_range

COMPILE = """
import logging, sys
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

logging.getLogger("torch_forwardfix").setLevel(logging.INFO)
logging.getLogger("torch_forwardfix").addHandler(logging.StreamHandler(sys.stdout))

class CyclicKey(CustomGraphPass):
    def __call__(self, graph):
        pass
    def uuid(self):
        key = []
        key.append(key)
        return key

def square(x):
    return x @ x

x = torch.arange(9.0).reshape(3, 3).requires_grad_()
y = torch.compile(square, options={"post_grad_custom_post_pass": CyclicKey()})(x)
assert torch.equal(y, square(x))
y.sum().backward()
compiled, x.grad = x.grad, None
square(x).sum().backward()
assert torch.equal(compiled, x.grad)
"""


def test_compiles_and_trains_like_eager_with_one_info_line(python):
    lines = [line for line in check(python(COMPILE)).splitlines() if line.startswith("fxgraph-cache-valueerror")]
    expected = ["fxgraph-cache-valueerror: applied to torch._inductor.codecache"]
    assert lines == (expected if in_range("fxgraph-cache-valueerror") else [])


def test_opt_out_fails_as_before(python):
    process = python(COMPILE, TORCH_FORWARDFIX="0")
    if in_range("fxgraph-cache-valueerror"):
        assert process.returncode == 1
        assert "ValueError: fast mode: can't pickle cyclic objects" in process.stderr
    else:
        check(process)


PICKLERS = """
import importlib, logging, sys
import torch, torch._dynamo
from torch._inductor.codecache import BypassFxGraphCache, FxGraphCachePickler
autograd_cache = importlib.import_module("torch._functorch._aot_autograd.autograd_cache")
logging.disable(logging.CRITICAL)

class Raises:
    def __init__(self, error):
        self.error = error
    def __reduce__(self):
        raise self.error

class OwnPickler(FxGraphCachePickler):
    def dumps(self, obj):
        return super().dumps(obj)

gm = torch.fx.symbolic_trace(lambda x: x + 1)
for pickler in (FxGraphCachePickler, OwnPickler, autograd_cache.AOTAutogradCachePickler):
    for error in (ValueError("value"), TypeError("type"), KeyError("key"), ZeroDivisionError("zero")):
        try:
            pickler(gm).dumps(Raises(error))
        except BaseException as raised:
            cause = raised.__cause__
            print(pickler.__name__, type(error).__name__, type(raised).__name__, cause is error)
    good = pickler(gm).dumps([1, "two"])
    assert good and pickler(gm).dumps([1, "two"]) == good
print(FxGraphCachePickler.dumps.__name__, FxGraphCachePickler.dumps.__qualname__, FxGraphCachePickler.dumps.__module__)
"""


def test_converts_value_error_alone_and_keeps_the_chain_in_every_pickler(python):
    *lines, names = check(python(PICKLERS)).splitlines()
    *unpatched, names_unpatched = check(python(PICKLERS, TORCH_FORWARDFIX="0")).splitlines()
    assert names == names_unpatched == "dumps FxGraphCachePickler.dumps torch._inductor.codecache"
    assert len(lines) == 12
    if in_range("fxgraph-cache-valueerror"):
        assert [line for line in lines if " ValueError " in line] == [
            "FxGraphCachePickler ValueError BypassFxGraphCache True",
            "OwnPickler ValueError BypassFxGraphCache True",
            "AOTAutogradCachePickler ValueError BypassFxGraphCache True",
        ]
        lines = [line for line in lines if " ValueError " not in line]
        unpatched = [line for line in unpatched if " ValueError " not in line]
    assert lines == unpatched


CACHED = """
import torch
from torch._dynamo.utils import counters

def square(x):
    return x @ x

torch.compile(square)(torch.arange(9.0).reshape(3, 3))
print(counters["aot_autograd"]["autograd_cache_hit"], counters["inductor"]["fxgraph_cache_bypass"])
"""


def test_warm_caches_of_an_unpatched_process_stay_warm(python):
    assert check(python(CACHED, TORCH_FORWARDFIX="0")) == "0 0\n"
    # Other fixes change generated code, and with it the caches' key.
    assert check(python(CACHED, TORCH_FORWARDFIX_ONLY="fxgraph-cache-valueerror")) == "1 0\n"


def test_applying_twice_patches_once(python):
    program = """
    import torch, torch._inductor.codecache as codecache
    once = codecache.FxGraphCachePickler.dumps
    import torch_forwardfix
    torch_forwardfix.activate()
    assert codecache.FxGraphCachePickler.dumps is once
    torch_forwardfix.status()
    assert codecache.FxGraphCachePickler.dumps is once
    print(hasattr(codecache.FxGraphCachePickler.dumps, "__wrapped__"))
    """
    assert re.fullmatch(rf"{in_range('fxgraph-cache-valueerror')}\n", check(python(program)))
