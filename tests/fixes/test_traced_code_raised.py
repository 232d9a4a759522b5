import json

from conftest import check

# Prints for each case the result and the code that was recorded, the function itself first.
PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import get_traced_code

class Config:
    attribute_map = {"heads": "num_heads"}
    num_heads = 3
    def __getattribute__(self, name):
        return super().__getattribute__(super().__getattribute__("attribute_map").get(name, name))

class Lazy:
    def __getattr__(self, name):
        raise AttributeError(name)

def fails(x):
    raise KeyError("no")

def outer(x):
    return fails(x)

def numbers():
    yield 2.0

exec("def without_source(x): raise KeyError('no')")
config, lazy = Config(), Lazy()

def caught(x, function):
    try:
        return function(x)
    except KeyError:
        return x * 5

cases = {
    "nothing raised": lambda x: x * config.heads,
    "getattr": lambda x: x * getattr(config, "missing", 4),
    "hasattr": lambda x: x if hasattr(lazy, "missing") else x * 2,
    "caught": lambda x: caught(x, outer),
    "generator": lambda x: x * sum(numbers()),
    "twice": lambda x: caught(caught(x, fails), fails),
    "no source": lambda x: caught(x, without_source),
}
seen = {}
for backend in ("first", "second"):
    for name, function in cases.items():
        torch._dynamo.reset()
        recorded = []
        def compiler(graph, inputs):
            recorded.extend(code.co_name for code in get_traced_code())
            return graph
        x = torch.ones(2)
        compiled = torch.compile(function, backend=compiler, fullgraph=True)(x)
        seen.setdefault(backend, {})[name] = [torch.equal(compiled, function(x)), sorted(recorded[1:])]
assert seen["first"] == seen["second"]
print(json.dumps(seen["first"]))
"""

# Of each function that was called, once for each call.
RAISED = {
    "getattr": ["__getattribute__"],
    "hasattr": ["__getattr__"],
    "caught": ["caught", "fails", "outer"],
    "twice": ["caught", "caught", "fails", "fails"],
}


def test_code_that_raised_is_recorded_and_nothing_else_changes(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)  # what is passed with -c has no source
    run = "import runpy; runpy.run_path('program.py')"
    fixed = json.loads(check(python(run)))
    plain = json.loads(check(python(run, TORCH_FORWARDFIX="0")))
    assert all(right for right, _ in fixed.values())
    assert {name: fixed[name][1] for name in RAISED} == RAISED
    assert {name: plain[name][1] for name in RAISED} == {
        name: [code for code in codes if code == "caught"] for name, codes in RAISED.items()
    }
    for name in fixed.keys() - RAISED.keys():
        assert fixed[name] == plain[name]


def test_a_saved_function_names_the_file_of_code_that_raised(python, tmp_path):
    (tmp_path / "configuration.py").write_text(
        "class Config:\n    def __getattribute__(self, name):\n        return super().__getattribute__(name)\n"
    )
    program = """
        import torch
        from configuration import Config

        torch._dynamo.config.enable_aot_compile = True
        config = Config()

        def scaled(x):
            return x @ x * getattr(config, "scaling", 1)

        compiled = torch.compile(scaled, fullgraph=True)
        # 2.9 saves functions as well, but does not say what they were made from.
        aot = compiled.aot_compile(((torch.eye(2),), {})) if hasattr(compiled, "aot_compile") else None
        if hasattr(aot, "source_info"):
            print({source.module for source in aot.source_info().inlined_sources} >= {"configuration"})
        else:
            print(torch.__version__.startswith("2.9."))
    """
    assert check(python(program, TORCH_FORWARDFIX_ONLY="traced-code-raised")).splitlines()[-1] == "True"
