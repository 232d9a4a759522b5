import json

from conftest import check, in_range

IN_RANGE = in_range("nvcc-probe-oserror")

PROBE = """
import json, logging, os, subprocess, sys
from pathlib import Path
from unittest import mock
import torch
torch.cuda.device_count = lambda: 0
from torch._dynamo import debug_utils
from torch._dynamo.repro import after_aot, aoti

logging.disable(logging.CRITICAL)

def make(kind, folder):
    folder.mkdir()
    nvcc = folder / "nvcc"
    if kind == "not executable":
        nvcc.write_text("#!/bin/sh\\necho never")
    elif kind == "unknown format":
        nvcc.write_bytes(bytes(range(1, 9)))
        nvcc.chmod(0o755)
    elif kind == "folder":
        nvcc.mkdir()
    elif kind == "link to itself":
        nvcc.symlink_to("nvcc")
    elif kind in ("works", "fails"):
        nvcc.write_text("#!/bin/sh\\necho release 12\\nexit " + str(int(kind == "fails")))
        nvcc.chmod(0o755)
    return str(nvcc)

def is_available():
    return sys._getframe(1).f_globals["__name__"] == "torch._dynamo.debug_utils"

def square(x):
    return x @ x

assert after_aot._cuda_system_info_comment is aoti._cuda_system_info_comment is debug_utils._cuda_system_info_comment
seen = {}
for number, kind in enumerate(json.loads(sys.argv[1])):
    nvcc = make(kind, Path(f"folder{number}"))
    with mock.patch("torch.cuda.is_available", is_available), mock.patch.dict(os.environ, PATH=str(Path(nvcc).parent)):
        debug_utils._cuda_system_info_comment.cache_clear()
        try:
            seen[kind] = after_aot._cuda_system_info_comment()
            assert aoti._cuda_system_info_comment() == seen[kind]
        except OSError as error:
            seen[kind] = type(error).__name__
        torch._dynamo.reset()
        x = torch.randn(3, 3, generator=torch.Generator().manual_seed(number))
        try:
            assert torch.equal(torch.compile(square)(x), square(x))
        except Exception as error:
            assert seen[kind] in str(error) and "nvcc" in str(error)
        else:
            assert "Error" not in seen[kind]
    # The module that asks runs other programs as before.
    for command in ([nvcc], [sys.executable, "-c", "print(7)"], [sys.executable, "-c", "raise SystemExit(7)"]):
        outcomes = []
        for run in debug_utils.subprocess.check_output, subprocess.check_output:
            try:
                outcomes.append((run(command, stderr=subprocess.STDOUT, text=True), None))
            except (OSError, subprocess.CalledProcessError) as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1], outcomes
assert debug_utils.subprocess.CalledProcessError is subprocess.CalledProcessError
print(json.dumps(seen), type(debug_utils.subprocess).__name__)
"""

WITHOUT = "# CUDA Info: \n# nvcc not found\n# GPU Hardware Info: \n\n"
KINDS = {
    "not executable": "PermissionError",
    "unknown format": "OSError",
    "folder": "PermissionError",
    "link to itself": "OSError",
}
NEIGHBOURS = {
    "works": "# CUDA Info: \n# release 12 \n\n# GPU Hardware Info: \n\n",
    "fails": WITHOUT,
    "none": WITHOUT,
}


ALL = json.dumps([*KINDS, *NEIGHBOURS])


def seen_by(process):
    found, _, module = check(process).strip().rpartition(" ")
    return json.loads(found), module


def test_nvcc_that_cannot_be_started_counts_as_missing_in_every_module_that_asks(python):
    expected = {kind: WITHOUT for kind in KINDS} | NEIGHBOURS
    assert seen_by(python(PROBE, ALL)) == (expected, "_Subprocess" if IN_RANGE else "module")


def test_unpatched_compile_fails_of_it_where_the_fix_applies(python):
    errors = KINDS if IN_RANGE else {kind: WITHOUT for kind in KINDS}
    assert seen_by(python(PROBE, ALL, TORCH_FORWARDFIX="0")) == (errors | NEIGHBOURS, "module")


def test_without_a_gpu_nothing_is_asked(python):
    program = """
    import torch
    from torch._dynamo import debug_utils
    from unittest import mock
    with mock.patch("subprocess.check_output", side_effect=AssertionError), mock.patch("subprocess.Popen", None):
        with mock.patch("torch.cuda.is_available", return_value=False):
            print(debug_utils._cuda_system_info_comment())
    """
    assert "no GPU info collected" in check(python(program))
