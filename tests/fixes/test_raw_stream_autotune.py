import json

from conftest import check, in_range

from torch_forwardfix.fixes.raw_stream_autotune import undefined

ID = "raw-stream-autotune"

BLOCKS = """
import json, re
import torch, torch_forwardfix
import torch._inductor.codegen.wrapper as wrapper
from torch_forwardfix.fixes.raw_stream_autotune import blocks, undefined

def either(x):
    return torch.cond(x.sum() > 0, lambda x: (x + 1).relu(), lambda x: (x * 2).sin(), (x,))
def several(x):  # a branch with more than one kernel
    return torch.cond(x.sum() > 0, lambda x: ((x + 1).sum(0), x.t().contiguous()), lambda x: (x.amax(0), x * 2), (x,))
def nested(x):
    inner = lambda x: torch.cond(x.amax() > 3, lambda x: x + 1, lambda x: x - 1, (x,))
    return torch.cond(x.sum() > 0, inner, lambda x: (x * 2).sin(), (x,)) * 2
def products(x):  # branches without a kernel of triton
    return torch.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x.t(), (x,))

def pointwise(x):
    return (x + 1).relu()
def reductions(x):
    return x.softmax(-1), x.sum(), x @ x
def combined(x):
    return torch._foreach_add([x, x[1:]], 1)

results = {}
for function in (either, several, nested, products, pointwise, reductions, combined):
    written, generated = blocks(function, torch.ones(64, 64))
    results[function.__name__] = {
        "blocks": written,
        "undefined": sorted(name for block in written for name in undefined(block)),
        "generated": [re.sub("AOT ID: .*", "", text) for text in generated.wrappers],
    }
enter = wrapper.PythonWrapperCodegen.codegen_device_guard_enter
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["raw-stream-autotune"]
print(json.dumps([state, hasattr(enter, "__wrapped__"), results]))
"""
SUBGRAPHS = ("either", "several", "nested", "products")


def test_blocks_of_subgraphs_define_what_they_use_and_all_else_stays_as_it_is(python):
    state, wrapped, fixed = json.loads(
        check(python(BLOCKS, CUDA_VISIBLE_DEVICES="", TORCH_FORWARDFIX_ONLY=ID)).splitlines()[-1]
    )
    assert (state, wrapped) == (("applied", True) if in_range(ID) else ("not-affected", False))
    _, wrapped, plain = json.loads(
        check(python(BLOCKS, CUDA_VISIBLE_DEVICES="", TORCH_FORWARDFIX="0")).splitlines()[-1]
    )
    assert not wrapped

    for program in fixed.values():
        assert program["undefined"] == []
        assert any("get_raw_stream(0)" in block for block in program["blocks"])
    if in_range(ID):
        for name in SUBGRAPHS:
            assert set(plain[name]["undefined"]) == {"get_raw_stream"}
            # Of the main graph, which is the last to be written, nothing changes; nor does what is compiled.
            assert fixed[name]["blocks"][-1] == plain[name]["blocks"][-1]
            assert fixed[name]["generated"] == plain[name]["generated"]
            for block, before in zip(fixed[name]["blocks"], plain[name]["blocks"], strict=True):
                assert [line for line in block.splitlines() if "import" not in line] == [
                    line for line in before.splitlines() if "import" not in line
                ]
            del fixed[name], plain[name]
    assert fixed == plain


def test_a_name_is_undefined_where_it_is_used_before_the_line_that_defines_it():
    assert undefined("import a.b\nfrom c import d as e\nx = a(e)\ndef f(g):\n    return g + x\nf(len([]))") == set()
    assert undefined("with a(0):\n    x = b(0)\nfrom c import b\n") == {"a", "b"}
