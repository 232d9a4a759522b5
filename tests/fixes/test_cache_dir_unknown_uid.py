import pytest
from conftest import check, in_range

from torch_forwardfix.fixes.cache_dir_unknown_uid import BECOME_UNKNOWN, FORBIDDEN

IN_RANGE = in_range("cache-dir-unknown-uid")

COMPILE = (
    BECOME_UNKNOWN
    + r"""
import tempfile
import torch
import torch._inductor.codecache as codecache
from torch._inductor.runtime import runtime_utils
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

for size in 3, 4:
    x = torch.arange(float(size * size)).reshape(size, size).requires_grad_()
    compiled = torch.compile(lambda x: x @ x)(x)
    assert torch.equal(compiled, x @ x)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (compiled, x @ x)))

given = os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
assert os.listdir(given), "the folder that the user chose was not used"
expected = os.path.join(tempfile.gettempdir(), f"torchinductor_uid_{os.getuid()}")
assert default_cache_dir() == runtime_utils.default_cache_dir() == codecache.default_cache_dir() == expected
assert codecache._HEADER_DIR == os.path.join(expected, "precompiled_headers")
assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"] == expected
os.environ["LOGNAME"] = "some/one"
assert default_cache_dir() == os.path.join(tempfile.gettempdir(), "torchinductor_some_one")
print("compiled")
"""
)


def unknown(process):
    """The output of a process of a user without a passwd entry."""
    if process.returncode and FORBIDDEN in process.stderr:
        pytest.skip(process.stderr.strip())  # names the machine's refusal; any other failure fails
    return process


def test_user_without_passwd_entry_compiles_and_gets_the_folder_that_torch_2_13_chooses(python, tmp_path):
    environment = {"TMPDIR": str(tmp_path), "HOME": "/nonexistent"}
    assert check(unknown(python(COMPILE, **environment))) == "compiled\n"
    plain = unknown(python(COMPILE, **environment, TORCH_FORWARDFIX="0"))
    assert plain.returncode == IN_RANGE
    assert ("in default_cache_dir" in plain.stderr) is IN_RANGE, plain.stderr


NAMES = r"""
import getpass, os, tempfile
from unittest import mock
from torch._inductor.runtime import cache_dir_utils, runtime_utils
import torch_forwardfix

function = cache_dir_utils.default_cache_dir
assert runtime_utils.default_cache_dir is function
assert (function.__name__, function.__qualname__, function.__module__) == (
    "default_cache_dir", "default_cache_dir", cache_dir_utils.__name__)
folder = os.path.join(tempfile.gettempdir(), "torchinductor_")

# Who has a name keeps it, with the same characters replaced.
assert function() == folder + getpass.getuser()
for name, sanitized in ("mary", "mary"), ("a b", "a b"), ("DOMAIN\\mary:1", "DOMAIN_mary_1"):
    with mock.patch.dict(os.environ, LOGNAME=name):
        assert function() == folder + sanitized == getattr(function, "__wrapped__", function)(), name

for error in KeyError("getpwuid(): uid not found: 7"), OSError("No username set"), ModuleNotFoundError("pwd"):
    with mock.patch("getpass.getuser", side_effect=error):
        assert function() == f"{folder}uid_{os.getuid()}", error
        with mock.patch.object(os, "getuid", None):
            assert function() == f"{folder}unknown_user"

# Other faults are reported as before.
with mock.patch("getpass.getuser", side_effect=ValueError("bad")):
    try:
        raise SystemExit(function())
    except ValueError:
        pass
with mock.patch("tempfile.gettempdir", side_effect=FileNotFoundError("No usable temporary directory")):
    try:
        raise SystemExit(function())
    except FileNotFoundError as error:
        assert "usable" in str(error)
print(hasattr(function, "__wrapped__"))
"""


def test_users_with_a_name_keep_their_folder_and_other_faults_are_reported(python):
    assert check(python(NAMES, LOGNAME="someone")) == f"{IN_RANGE}\n"
