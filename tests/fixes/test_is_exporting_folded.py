from conftest import check, in_range

# Each line: who asks, and what it was told.
PROGRAM = """
import warnings
import torch
import torch._dynamo
import torch._dynamo.functional_export as functional_export
import torch_forwardfix

warnings.simplefilter("ignore")
torch._dynamo.config.enable_aot_compile = True

def branch(x):
    return x * 3 if torch.compiler.is_exporting() else x * 2

class Model(torch.nn.Module):
    def forward(self, x):
        return branch(x)

class Cond(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, branch, lambda x: branch(x) + 0, (x,))

def is_exporting(y, x):
    assert torch.equal(y, x * 2) or torch.equal(y, x * 3), y
    return torch.equal(y, x * 3)

def ask(who, function, x):
    y = function(x)
    answer = is_exporting(y.detach(), x.detach())
    if y.requires_grad:
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad, torch.full_like(x, 3.0 if answer else 2.0))
    print(who, answer)

x, longer = torch.arange(1.0, 4), torch.arange(1.0, 9)
compiled = torch.compile(Model(), backend="eager")
ask("eager", Model(), x)
ask("compile", compiled, x)
ask("compile aot_eager", torch.compile(Model(), backend="aot_eager"), x.clone().requires_grad_())
ask("compile other shape", compiled, longer)
ask("compile dynamic", torch.compile(branch, backend="eager", dynamic=True), longer)
ask("compile fullgraph cond", torch.compile(Cond(), backend="eager", fullgraph=True), x)
ask("eager cond", Cond(), x)

def matmul(x, two, three):  # inductor calls a library for it, no C++ compiler runs
    return x @ three if torch.compiler.is_exporting() else x @ two

square, two, three = torch.ones(3, 3), torch.eye(3) * 2, torch.eye(3) * 3
aot_compiled = torch.compile(matmul, fullgraph=True).aot_compile(((square, two, three), {}))
ask("aot_compile", lambda x: aot_compiled(x, two, three), square)
for strict in (False, True):
    ask("export", torch.export.export(Model(), (x,), strict=strict).module(), x)
    ask("export cond", torch.export.export(Cond(), (x,), strict=strict).module(), x)
ask("export dynamo", torch._dynamo.export(branch)(x)[0], x)
for name in ("dynamo_graph_capture_for_export", "_dynamo_graph_capture_for_export"):
    if hasattr(functional_export, name):
        capture = getattr(functional_export, name)
        ask("export capture", capture(Model())(x), x)
ask("compile after export", compiled, x)
torch._dynamo.reset()
ask("compile after reset", torch.compile(branch, backend="eager"), x)

def others(x):
    return x, [f() for f in (torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling, torch._utils.is_compiling,
                             torch.jit.is_scripting, torch.jit.is_tracing, torch.onnx.is_in_onnx_export)]

print("others", torch.compile(others, backend="eager", fullgraph=True)(x)[1])
print({status.id: status.state for status in torch_forwardfix.status()}["is-exporting-folded"])
"""


def test_true_under_export_alone_whatever_comes_first(python):
    *answers, others, state = check(python(PROGRAM)).splitlines()
    for answer in answers:
        assert answer.endswith(str(answer.startswith("export"))), answers
    assert others == "others [True, True, True, False, False, False]"
    assert state == ("applied" if in_range("is-exporting-folded") else "not-affected")


def test_opt_out_is_true_in_all_code_that_dynamo_traces_and_nothing_else_differs(python):
    *answers, others, _ = check(python(PROGRAM, TORCH_FORWARDFIX="0")).splitlines()
    for answer in answers:
        traced = in_range("is-exporting-folded") and answer.startswith(("compile", "aot_compile", "eager cond"))
        assert answer.endswith(str(answer.startswith("export") or traced)), answers
    assert others == "others [True, True, True, False, False, False]"
