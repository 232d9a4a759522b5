from conftest import check, in_range

from torch_forwardfix import gates

SAVE = """
import builtins, sys
import torch
torch._dynamo.config.enable_aot_compile = True

def outside():
    return 1

outside.__module__ = "a_module_that_is_not_there_when_loading"
builtins.outside = outside  # as IPython adds its own names

def model(x, flag):
    kind = tuple if isinstance(flag, bool) else dict
    return {"hidden": x @ x, "kind": kind, "types": (int, type(flag), type, isinstance, len)}

x = torch.arange(9.0).reshape(3, 3)
compiled = torch.compile(model, fullgraph=True).aot_compile(((x, True), {}))
result = compiled(x, True)
assert torch.equal(result["hidden"], x @ x) and result["kind"] is tuple, result
compiled.save_compiled_function(sys.argv[1])
"""

LOAD = """
import sys
import torch
torch._dynamo.config.enable_aot_compile = True
with open(sys.argv[1], "rb") as file:
    compiled = torch.compiler.load_compiled_function(file)
x = torch.arange(9.0).reshape(3, 3) / 7
result = compiled(x, True)
assert torch.equal(result["hidden"], x @ x)
assert result["kind"] is tuple and result["types"] == (int, bool, type, isinstance, len), result
print("ok")
"""


def test_compile_save_load_in_a_fresh_process_and_run(python, tmp_path):
    path = str(tmp_path / "compiled")
    check(python(SAVE, path))
    assert check(python(LOAD, path)) == "ok\n"


def test_what_is_saved_loads_without_us(python, tmp_path):
    path = str(tmp_path / "compiled")
    # Under fixes that change generated code torch would refuse it.
    check(python(SAVE, path, TORCH_FORWARDFIX_ONLY="aot-builtins"))
    process = python(LOAD, path, TORCH_FORWARDFIX="0")
    if gates.in_range(gates.installed_version("torch"), "<2.10rc99"):
        # 2.9 saves no globals at all: there the loading process needs the fix.
        assert "__builtins_dict__" in process.stderr
    else:
        assert check(process) == "ok\n"


def test_opt_out_fails_as_before(python, tmp_path):
    path = str(tmp_path / "compiled")
    saved = python(SAVE, path, TORCH_FORWARDFIX="0")
    loaded = python(LOAD, path, TORCH_FORWARDFIX="0") if saved.returncode == 0 else saved
    if in_range("aot-builtins"):
        assert loaded.returncode == 1
        assert "__builtins_dict__" in loaded.stderr
    else:
        assert check(loaded) == "ok\n"


SHADOWED = """
from types import SimpleNamespace
from torch_forwardfix.fixes.aot_builtins import _save_builtins

capture = SimpleNamespace(f_globals={"len": "the user's own", "__builtins_dict___0": vars(__builtins__)})

def original(self):
    return SimpleNamespace(external_refs={"len", "int", "__builtins_dict___0", "unknown"}, used_globals={})

saved = _save_builtins(original)(capture).used_globals
print(sorted(saved), saved["int"] is int, saved["__builtins_dict___0"]["len"] is len)
"""


def test_a_global_of_the_user_is_not_taken_for_the_builtin_of_its_name(python):
    assert check(python(SHADOWED)) == "['__builtins_dict___0', 'int'] True True\n"
