"""Every start of Python, and every process, thread and interpreter in it, has the fixes and is not disturbed."""

import functools
import shutil

import pytest
from conftest import add_torch_like

start_row = functools.partial(pytest.mark.row, "Start-up")
process_row = functools.partial(pytest.mark.row, "Processes, threads and interpreters")

CALL = "import torch._dynamo; print(torch._dynamo.f(), flush=True)"
COUNT = "import sys, torch_forwardfix; print(sys.meta_path.count(torch_forwardfix.watcher), flush=True)"
FIXED = "plain and fixed\n"


def check(venv, *arguments, said=FIXED, **extra):
    done = venv.run(*arguments, **extra)
    assert (done.stdout, done.stderr) == (said, "")


@start_row("`python {options}`: silent, and fixes are applied")
@pytest.mark.parametrize(
    "options",
    ["-I", "-E", "-s", "-B", "-O", "-OO", "-W error", "-X dev", "-bb -W error -X dev -X warn_default_encoding"],
)
def test_options(fixing_venv, options):
    check(fixing_venv, *options.split(), "-c", "pass", said="")
    check(fixing_venv, *options.split(), "-c", f"{COUNT}; {CALL}", said=f"1\n{FIXED}")


@start_row("`python -W error -X dev`: the commands do not warn")
@pytest.mark.parametrize("command", [("status", "--live"), ("status", "--json"), ("show", "plugged")], ids=" ".join)
def test_commands_do_not_warn(fixing_venv, command):
    done = fixing_venv.run("-W", "error", "-X", "dev", "-m", "torch_forwardfix", *command)
    assert "plugged" in done.stdout
    assert done.stderr == ""


@start_row("`LC_ALL=C`, with an ASCII file system: silent, and fixes are applied")
def test_c_locale(fixing_venv):
    # Without these two Python would take UTF-8.
    ascii = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    check(fixing_venv, "-c", f"import sys; assert sys.getfilesystemencoding() == 'ascii'; {COUNT}", said="1\n", **ascii)
    check(fixing_venv, "-W", "error", "-c", CALL, **ascii)


@start_row("`python -S`: nothing of ours is loaded, until `activate()` is called")
def test_without_site(fixing_venv):
    loaded = "import sys; print([name for name in sys.modules if 'forwardfix' in name])"
    check(fixing_venv, "-S", "-c", loaded, said="[]\n")
    path = {"PYTHONPATH": str(fixing_venv.site)}
    check(fixing_venv, "-S", "-c", CALL, said="plain\n", **path)
    check(fixing_venv, "-S", "-c", f"import torch_forwardfix; torch_forwardfix.activate(); {CALL}", **path)


@start_row("folders that cannot be written, no `.pyc` files: silent, and fixes are applied")
def test_site_packages_that_cannot_be_written(own_venv):
    add_torch_like(own_venv)
    for cache in list(own_venv.site.rglob("__pycache__")):
        shutil.rmtree(cache)
    for folder in [own_venv.site, *own_venv.site.rglob("*")]:
        if folder.is_dir():
            (folder / "__pycache__").touch()  # no bytecode can be written, not even by root
    check(own_venv, "-c", "pass", said="")
    check(own_venv, "-W", "error", "-X", "dev", "-c", f"{COUNT}; {CALL}", said=f"1\n{FIXED}")
    assert not list(own_venv.site.rglob("*.pyc"))


@start_row("a `.pth` file that is read twice: armed once, fixes are applied once")
def test_two_passes_over_the_pth_file(fixing_venv):
    again = f"import site; site.addsitedir({str(fixing_venv.site)!r})"
    check(fixing_venv, "-c", f"{again}; {COUNT}; {CALL}; {again}; {COUNT}; {CALL}", said=f"1\n{FIXED}0\n{FIXED}")


@start_row("a torch that is broken fails with the traceback that it always had")
@pytest.mark.parametrize("name", ["torch._inductor", "torch._nothing"])
def test_traceback_of_a_torch_that_cannot_be_imported(fixing_venv, name):
    seen, plain = (
        fixing_venv.run("-c", f"import {name}", check=False, TORCH_FORWARDFIX=switch).stderr for switch in ("1", "0")
    )
    assert plain.splitlines()[-1].startswith(("ValueError: a torch", "ModuleNotFoundError: No module"))
    assert seen == plain


MAIN = f"""
import multiprocessing, sys
def work(): {CALL}
if __name__ == "__main__":
    if sys.argv[2] == "after": work()
    process = multiprocessing.get_context(sys.argv[1]).Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@process_row("`multiprocessing`, {method}, {when} the parent has loaded torch's compiler: the child has the fixes")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_multiprocessing(fixing_venv, tmp_path, method, when):
    (tmp_path / "main.py").write_text(MAIN)
    said = FIXED * (2 if when == "after" else 1)
    check(fixing_venv, "-W", "error", str(tmp_path / "main.py"), method, when, said=said)


INTERPRETERS = """
def run(code):
    try:
        from concurrent.interpreters import create
    except ImportError:
        pass
    else:
        return create().exec(code)
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    error = interpreters.run_string(interpreters.create(), code)
    assert error is None, error
"""


@process_row("a sub-interpreter, {when} the main one has loaded torch's compiler: has the fixes")
@pytest.mark.parametrize("when", ["before", "after"])
def test_sub_interpreters(fixing_venv, when):
    code = f"{INTERPRETERS}{CALL if when == 'after' else ''}\nrun({COUNT!r})\nrun({CALL!r})"
    check(fixing_venv, "-c", code, said=f"{FIXED if when == 'after' else ''}1\n{FIXED}")


@process_row("16 threads import torch's compiler at once: each sees it fixed, once")
def test_threads_at_once(fixing_venv):
    code = """
from threading import Barrier, Thread
barrier, seen = Barrier(16), []
def work():
    barrier.wait()
    import torch._dynamo
    seen.append(torch._dynamo.f())
threads = [Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(seen), *set(seen))
"""
    check(fixing_venv, "-W", "error", "-c", code, said=f"16 {FIXED}")


@process_row(
    "a thread started in torch's `__init__` imports torch's compiler: fixes are applied, no hang where Python alone "
    "does not hang (python/cpython#83065)"
)
def test_thread_of_a_torch_that_is_loading(fixing_venv):
    program = f"import faulthandler; faulthandler.dump_traceback_later(10, exit=True); import torch; {CALL}"
    thread = {"START_A_THREAD": "1"}
    if fixing_venv.run("-c", program, check=False, TORCH_FORWARDFIX="0", **thread).returncode:
        pytest.skip("this Python hangs there by itself: it locks parents before their children (python/cpython#83065)")
    check(fixing_venv, "-c", program, **thread)
