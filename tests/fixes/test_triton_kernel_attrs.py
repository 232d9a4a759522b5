import json

from conftest import FIXES, check, in_range

from torch_forwardfix import gates

ID = "triton-kernel-attrs"
OLD_TORCH = gates.why_not_affected({"torch": FIXES[ID].affects["torch"]}) is None

# Triton may not be here, so the kernels are stand-ins with what inductor reads of one.
LAUNCHERS = """
import json, sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
import torch, torch_forwardfix
from torch._inductor.runtime import triton_heuristics
from torch._inductor.utils import get_triton_attrs_descriptor_version
from torch_forwardfix import patching
from torch_forwardfix.fixes.triton_kernel_attrs import FIX

calls = []

class Kernel:
    launch_enter_hook = launch_exit_hook = None
    function = object()
    packed_metadata = (4, 1, 0)
    hash = "0"
    def __init__(self, metadata, **attributes):
        self.metadata = namedtuple("KernelMetadata", metadata)(**metadata)
        self.src = SimpleNamespace(fn=SimpleNamespace(arg_names=["pointer", "number"], params=[], constexprs=[]))
        vars(self).update(attributes)
    def _init_handles(self):
        pass
    def launch_metadata(self, *arguments):
        pass
    def run(self, *arguments):
        calls.append(arguments)

def kernels():
    shared = {"num_warps": 4, "shared": 0}
    return {
        "3.6": Kernel({**shared, "num_ctas": 1}),
        "3.6 cluster": Kernel({**shared, "num_ctas": 2}),
        "3.5": Kernel({**shared, "num_ctas": 2, "cluster_dims": (2, 1, 1)}),
        "completed": Kernel({**shared, "num_ctas": 2}, num_ctas=2, cluster_dims=(1, 2, 1)),
    }

def outcome(kernel):
    before = set(vars(kernel))
    result = triton_heuristics.TritonCompileResult(
        kernel,
        SimpleNamespace(kwargs={}, num_warps=4, num_stages=1),
        {"signature": {"pointer": "*fp32", "number": "i32"}, "constants": {}},
        {"grid_type": "FixedGrid", "fixed_grid": ["2", "3", "4"], "extra_launcher_args": [], "kernel_name": "kernel"},
    )
    calls.clear()
    try:
        result.make_launcher()("pointer", 5, stream=7)
    except AttributeError as error:
        return str(error)
    ((*grid, stream), (*_, pointer, number)) = calls[0][:4], calls[0]
    return [grid, stream, pointer, number, {name: vars(kernel)[name] for name in sorted(set(vars(kernel)) - before)}]

state = {fix.id: fix.state for fix in torch_forwardfix.status()}["triton-kernel-attrs"]
make = triton_heuristics.TritonCompileResult.make_launcher
answer = {"state": state, "wrapped": hasattr(make, "__wrapped__"), "present": FIX.is_present(triton_heuristics)}
get_triton_attrs_descriptor_version()  # looks for the real one, once
sys.modules.setdefault("triton", ModuleType("triton"))
answer["without"] = {name: outcome(kernel) for name, kernel in kernels().items()}
if state != "applied":
    with patching.journal():
        FIX.apply(triton_heuristics)
answer["with"] = {name: outcome(kernel) for name, kernel in kernels().items()}
print(json.dumps(answer))
"""
STARTED = [[2, 3, 4], 7, "pointer", 5]


def test_kernels_without_cluster_dims_start_and_all_others_are_left_alone(python):
    answer = json.loads(check(python(LAUNCHERS)).splitlines()[-1])
    assert answer["state"] == ("applied" if in_range(ID) else "not-affected")
    assert answer["wrapped"] is in_range(ID)
    assert in_range(ID) or answer["present"] is OLD_TORCH

    given = [{"cluster_dims": [number, 1, 1], "num_ctas": number} for number in (1, 2)]
    assert answer["with"] == {
        "3.6": [*STARTED, given[0]],
        "3.6 cluster": [*STARTED, given[1]],
        "3.5": [*STARTED, {}],
        "completed": [*STARTED, {}],
    }
    if OLD_TORCH and not in_range(ID):
        missing = "'KernelMetadata' object has no attribute 'cluster_dims'"
        assert answer["without"] == {**answer["with"], "3.6": missing, "3.6 cluster": missing}
    if not OLD_TORCH:
        assert answer["without"] == {name: [*STARTED, {}] for name in answer["with"]}


def test_launchers_are_wrapped_only_beside_triton_3_6(python):
    program = """
        import torch._inductor.runtime.triton_heuristics as heuristics
        print(hasattr(heuristics.TritonCompileResult.make_launcher, "__wrapped__"))
    """
    assert check(python(program)) == f"{in_range(ID)}\n"
