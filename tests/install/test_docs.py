"""The commands that the pages show: each is run here, or it is said which test or session runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
# test_ecosystem.py runs what stands there.
PAGES += [page for page in sorted(ROOT.glob("docs/*.md")) if page.name != "ecosystem.md"]

# What another test or a session runs; nothing else may stand on a page without being run here.
ELSEWHERE = {
    r"pip install torch-forwardfix": "tests/install/test_install.py, from the wheel",
    r"python3 -m venv \.venv .* && \.venv/bin/nox --session (demo|tests|benchmark)": "the session; .ci/run runs tests",
    r"nox --session (tests|evidence -- fxgraph-cache-valueerror)": "the session itself",
    r"python -m torch_forwardfix verify": "tests/unit/test_verify.py, and the proofs in tests/fixes/test_proofs.py",
    r"P=\.nox/.*|\.venv/bin/uv pip install --python \$P .*|\$P -m .*": "test_what_is_typed_while_working_on_a_fix",
    r"python -m torch_forwardfix bisect -- python train\.py --steps 1": "tests/unit/test_bisect.py",
    r"python -m torch_forwardfix startup train\.py --steps 1": "tests/startup/test_command.py",
}
GENERATED = ("compatibility.md", "drift.md", "evidence.md", "performance.md")
# Where the output must be what the page shows; of the others it is enough that they end well.
SHOWN = ("cat overflow.py", "TORCH_FORWARDFIX=0 python overflow.py", "python overflow.py", "show mul-zero-nan")


def blocks():
    """The commands of all pages, with what is shown as their output."""
    for page in PAGES:
        for kind, text in re.findall(
            r"^ *```(sh|console)\n(.*?)^ *```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            if kind == "sh":
                yield from ((page.name, command.strip(), "") for command in text.replace("\\\n", "").splitlines())
            else:
                for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    command, _, output = part.partition("\n")
                    yield page.name, command, output


COMMANDS = sorted({(command, output) for _, command, output in blocks()})
HERE = [pair for pair in COMMANDS if not any(re.fullmatch(pattern, pair[0]) for pattern in ELSEWHERE)]


def test_every_exception_is_on_a_page():
    for pattern in ELSEWHERE:
        assert any(re.fullmatch(pattern, command) for command, _ in COMMANDS), pattern


def test_commands_were_found_on_the_pages():
    assert {page for page, _, _ in blocks()} >= {"README.md", "SECURITY.md", "CONTRIBUTING.md", "performance.md"}
    assert len(HERE) >= 5


@pytest.mark.parametrize(("command", "output"), HERE, ids=[command for command, _ in HERE])
def test_the_command_does_what_the_page_shows(torch_venv, tmp_path, command, output):
    for _, shown, text in blocks():
        if shown.startswith("cat "):
            (tmp_path / shown.removeprefix("cat ")).write_text(text)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "PYTHON"))}
    path = f"{torch_venv.python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean, "PATH": path, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if command.endswith(SHOWN):
        shown, dots, _ = output.partition("...\n")
        assert done.stdout == shown or (dots and done.stdout.startswith(shown))
    else:
        assert not output, "what stands below the command is not compared: add it to SHOWN"


def test_what_is_typed_while_working_on_a_fix(torch_venv, tmp_path, copy_source):
    """In an environment like that of the session ``demo``."""
    lines = [text for page, text, _ in blocks() if page == "adding-a-fix.md" and text.startswith(("P=", ".venv", "$P"))]
    assert len(lines) == 4
    folder = copy_source()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    script = "\n".join(["set -e", f"P={torch_venv.python}", *lines[1:]])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "PYTHON"))}
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 proved here" in done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_lines_are_at_most_120_columns_wide(page):
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []
