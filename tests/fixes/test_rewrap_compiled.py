import ast

from conftest import check, in_range

ID = "rewrap-compiled"

# Prints a name and what came of it for each way to bring a compiled function back to torch.compile. A copy doubles the
# result, so that it shows where dynamo went round it.
PROGRAM = """
import functools, types
import torch
import torch._dynamo

compile = functools.partial(torch.compile, backend="aot_eager")

def base(x):
    return x.sin() @ x

def double(compiled):
    @functools.wraps(compiled)
    def copy(x, *, factor=2):
        return compiled(x) * factor
    return copy

class Module(torch.nn.Module):
    def forward(self, x):
        return base(x)

class Class:
    @functools.partial(compile, fullgraph=True)
    def method(self, x):
        return base(x) * 2

    @double
    @compile
    def decorated(self):
        return base(self)

compiled = compile(base)
copy = double(compiled)
copy.note = ["mine"]
module = Module()
module.forward = double(compile(module.forward))

def own(x):
    return base(x)
own.get_compiler_config = lambda: "mine"
own_copy = double(compiled)
own_copy.get_compiler_config = own.get_compiler_config
own_module = Module()
own_module.get_compiler_config = own.get_compiler_config

def attempt(name, make, factor=2):
    torch._dynamo.reset()
    try:
        function = make()
        for rows in (2, 3, 5):
            x = torch.randn(rows, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
            x.requires_grad_()
            result, expected = function(x), base(x) * factor
            gradients = [torch.autograd.grad(each.sum(), x)[0] for each in (result, expected)]
            if not torch.equal(result, expected) or not torch.equal(*gradients):
                return print((name, "differs"))
    except Exception as error:
        return print((name, type(error).__name__))
    print((name, "right"))

marks = dict(vars(copy))
attempt("copy", lambda: compile(copy))
assert vars(copy) == marks
attempt("fullgraph", lambda: compile(copy, fullgraph=True))
attempt("dynamic", lambda: compile(copy, dynamic=True))
attempt("run", lambda: torch._dynamo.run(copy))
attempt("compiled again", lambda: compile(compile(copy)))
attempt("called by a compiled function", lambda: compile((lambda again: lambda x: again(x))(compile(copy))))
attempt("copied again", lambda: compile(double(compile(copy))), 4)
attempt("of a module", lambda: compile(double(compile(Module()))))
attempt("forward", lambda: (setattr(module, "forward", compile(module.forward)), module)[1])
attempt("method", lambda: compile(Class().method))
attempt("bound", lambda: (lambda method: lambda x: types.MethodType(method, x)())(Class.decorated))
attempt("bound copy", lambda: lambda x: compile(types.MethodType(Class.decorated, x))())
with torch._dynamo.config.patch(wrap_top_frame=True):
    attempt("wrap_top_frame", lambda: compile(copy))

attempt("plain", lambda: compile(lambda x: base(x) * 2))
attempt("twice", lambda: compile(compiled), 1)
attempt("twice a module", lambda: compile(compile(Module())), 1)
attempt("disabled", lambda: compile(double(torch._dynamo.disable(base))))

attempt("own", lambda: compile(own), 1)
attempt("own copy", lambda: compile(own_copy))
attempt("own module", lambda: compile(own_module), 1)
attempt("copy of a copy", lambda: compile(functools.wraps(copy)(lambda x: copy(x))))
attempt("partial", lambda: compile(functools.update_wrapper(functools.partial(copy), copy)))
attempt("no function", lambda: torch.compile(backend="aot_eager")(3))

try:
    again = compile(copy, dynamic=False)
    names = again.__name__, again.__qualname__, again.__module__, vars(again).get("note")
    print(("attributes", [*names, again.get_compiler_config is compiled.get_compiler_config]))
except AssertionError:
    print(("attributes", "AssertionError"))
"""
COPIES = ("copy", "fullgraph", "dynamic", "run", "compiled again", "called by a compiled function", "copied again")
COPIES += ("of a module", "forward", "method", "bound copy", "wrap_top_frame")
REFUSED = ("own", "own copy", "own module", "copy of a copy", "partial")


def run(python, **environment):
    lines = check(python(PROGRAM, **environment)).splitlines()
    return dict(ast.literal_eval(line) for line in lines)


def test_copies_compile_to_what_they_do_and_what_cannot_be_right_is_still_refused(python):
    patched, unpatched = run(python), run(python, TORCH_FORWARDFIX="0")
    if in_range(ID):
        assert {name for name, outcome in unpatched.items() if outcome == "AssertionError"} >= {*COPIES, *REFUSED}
        attributes = ["base", "base", "__main__", ["mine"], False]
        assert patched == {**unpatched, **dict.fromkeys(COPIES, "right"), "attributes": attributes}
    else:
        assert patched == unpatched


def test_it_is_applied_beside_compile_disable_in_range_alone(python):
    program = """
    import torch, torch._dynamo.eval_frame as eval_frame
    import torch_forwardfix
    states = {each.id: each.state for each in torch_forwardfix.status()}
    print({id: states[id] for id in ("rewrap-compiled", "compile-disable")})
    print(hasattr(eval_frame._TorchDynamoContext.__call__, "__wrapped__"))
    """
    states, wrapped = check(python(program)).splitlines()
    assert ast.literal_eval(states) == {
        id: "applied" if in_range(id) else "not-affected" for id in (ID, "compile-disable")
    }
    assert wrapped == str(in_range(ID))


def test_threads_may_compile_one_copy_at_the_same_time(python):
    program = """
    import functools, threading
    import torch, torch._dynamo
    compiled = torch.compile(lambda x: x @ x)
    @functools.wraps(compiled)
    def copy(x):
        return compiled(x)
    done = []
    def many():
        for _ in range(200):
            try:
                again = torch.compile(copy)
            except AssertionError:
                return
        done.append(again)
    threads = [threading.Thread(target=many) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    x = torch.arange(9.0).reshape(3, 3)
    print([torch.equal(again(x), x @ x) for again in done])
    """
    assert check(python(program)) == "[True, True, True, True]\n"
    if in_range(ID):
        assert check(python(program, TORCH_FORWARDFIX="0")) == "[]\n"
