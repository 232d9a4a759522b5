"""What runs without being asked for: which text, with what effects, and who can get in between."""

import hashlib
import json
import sys

import pytest
from conftest import ROOT

# Read by site before torch_forwardfix.pth, as it sorts before it. What Python itself does to import a module of ours
# (it reads files, and would write bytecode where an installer has not) has frozen frames of importlib next to it.
RECORDER = """
import atexit, sys

EVENTS = []

def record(event, args):
    if event.partition(".")[0] in ("import", "object", "sys", "marshal", "compile", "exec", "builtins", "code"):
        return
    frame, importing = sys._getframe().f_back, False
    while frame is not None:
        name = frame.f_code.co_filename
        importing = importing or name.startswith("<frozen importlib")
        if "torch_forwardfix" in name and not importing:
            EVENTS.append(f"{event} {args[:2]!r}")
            return
        frame = frame.f_back

sys.addaudithook(record)
atexit.register(lambda: print("\\\\n".join(EVENTS)))
"""


@pytest.fixture
def recorded(own_venv):
    (own_venv.site / "aaa_recorder.py").write_text(RECORDER)
    (own_venv.site / "aaa_recorder.pth").write_text("import aaa_recorder\n")
    return own_venv


def fake_torch(venv):
    for name, text in {
        "__init__.py": "from .version import __version__\n",
        "version.py": "__version__ = '2.10.0'\n",
        "_dynamo/__init__.py": "",
        "_inductor/__init__.py": "",
    }.items():
        path = venv.site / "torch" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.row("Security", "the text and the hash of the `.pth` file are those that README and SECURITY.md publish")
def test_text_and_hash_of_the_pth_are_published(venv):
    content = (venv.site / "torch_forwardfix.pth").read_bytes()
    for document in "README.md", "SECURITY.md":
        text = (ROOT / document).read_text("utf-8")
        assert content.decode().strip() in text
        assert hashlib.sha256(content).hexdigest() in text


@pytest.mark.row(
    "Security", "the boot does nothing that Python audits: it opens no file and no connection, starts no process"
)
def test_boot_does_nothing_that_python_audits(recorded):
    assert recorded.run("-c", "pass").stdout == "\n"


@pytest.mark.row("Security", "the hook reads files, and does nothing else that Python audits")
def test_hook_reads_files_and_does_nothing_else(recorded):
    fake_torch(recorded)
    events = recorded.run("-c", "import torch._dynamo; import torch._inductor").stdout.splitlines()
    assert any("torch_forwardfix/fixes" in event for event in events), events  # the recorder sees what we do
    for event in events:
        kind, _, arguments = event.partition(" ")
        assert kind in ("open", "os.listdir", "os.scandir"), event
        assert kind != "open" or arguments.endswith(("'r')", "'rb')")), event


@pytest.mark.row(
    "Security", "values of our environment variables are named where they are ignored, never run, never used as a path"
)
@pytest.mark.parametrize(
    "value", ["$(touch {0}/mark)", "__import__('os').mkdir('{0}/mark')", "{0}/mark", "../mark", "%s"]
)
def test_values_of_the_environment_are_named_and_neither_run_nor_opened(recorded, tmp_path, value):
    fake_torch(recorded)
    value = value.format(tmp_path)
    names = ("TORCH_FORWARDFIX", "TORCH_FORWARDFIX_DISABLE", "TORCH_FORWARDFIX_ONLY", "TORCH_FORWARDFIX_STRICT")
    done = recorded.run("-c", "import torch._dynamo", **dict.fromkeys(names, value))
    assert done.stderr.count(value) >= len(names), done.stderr
    assert value not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.row("Security", "a plug-in that takes the id of a fix of ours is refused")
def test_plug_in_cannot_take_the_id_of_a_fix_of_ours(own_venv):
    (own_venv.site / "thief.py").write_text(
        "import dataclasses\n"
        "from torch_forwardfix.fixes.aot_builtins import FIX\n"
        "STOLEN = dataclasses.replace(FIX, title='stolen')\n"
    )
    info = own_venv.site / "thief-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[torch_forwardfix.fixes]\nstolen = thief:STOLEN\n")
    report = json.loads(own_venv.run("-m", "torch_forwardfix", "status", "--json").stdout)
    (ours,) = (fix for fix in report["fixes"] if fix["id"] == "aot-builtins")
    assert ours["title"] != "stolen"
    (refused,) = (fix for fix in report["fixes"] if fix["state"] == "superseded")
    assert "'aot-builtins' of plug-in thief is taken" in refused["reason"]


@pytest.mark.row("Security", "autorun-audit rates the installation medium, and sees no capability")
def test_scanner_of_start_up_code_rates_it_medium_and_sees_no_capability(venv, make_venv):
    if sys.version_info < (3, 11):
        pytest.skip("autorun-audit needs Python 3.11")  # its Requires-Python
    scanner = make_venv()
    scanner.pip("install", "--quiet", "autorun-audit")
    report = scanner.run(
        "-m", "autorun_audit", "env", "--python", venv.python, "--format", "json", "--min-severity", "info"
    )
    (finding,) = (found for found in json.loads(report.stdout)["findings"] if "torch_forwardfix" in found["path"])
    assert (finding["severity"], finding["rule"]) == ("medium", "pth.import-line")
    assert not finding["capabilities"]
    assert finding["owner"].startswith("torch_forwardfix==")
