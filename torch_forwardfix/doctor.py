"""Why it is not active: what is wrong in this environment, and what mends it. It changes nothing by itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from . import catalog, engine, settings, watcher
from ._version import __version__
from .gates import installed_version, package_folders

PACKAGE = "torch_forwardfix"
PTH = f"{PACKAGE}.pth"
START = f"{PACKAGE}.start"

TIMEOUT_SECONDS = 600.0

_ACTIVATE = "call torch_forwardfix.activate() before torch.compile is used"
_ANSWER = "torch_forwardfix.doctor: "

# What a fresh interpreter is asked. It says first what it found when it had started, before it imports anything.
_QUESTIONS = f"""
import sys
finders = list(sys.meta_path)
at_start = {PACKAGE!r} in sys.modules
compiler = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]

import json, site
from importlib.util import find_spec

def describe(finder):
    kind = finder if hasattr(finder, "__qualname__") else type(finder)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ + "." + kind.__qualname__ + (f" ({{file}})" if file else "")

def plan():
    engine = sys.modules.get({PACKAGE!r} + ".engine")
    return engine and engine.current_plan()

ours = sys.modules.get({PACKAGE!r})
spec = None if at_start else find_spec({PACKAGE!r})
watcher = getattr(ours, "watcher", None)
place = [i for i, finder in enumerate(finders)
         if ours and (finder is watcher or type(finder).__module__ == {PACKAGE!r} + ".hook")]
say = lambda **answer: print("\\n{_ANSWER}" + json.dumps(answer), flush=True)
say(
    armed=bool(place) or plan() is not None,
    at_start=at_start,
    file=getattr(ours, "__file__", None) if at_start else spec and spec.origin,
    site=site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),
    user_site=site.getusersitepackages(),
    finders_ahead=[describe(finder) for finder in finders[:place[0] if place else 0]],
    compiler_past_us=[] if plan() else compiler,
)
if "live" in sys.argv:
    from contextlib import suppress
    from importlib import import_module
    from torch_forwardfix import engine, report
    for name in engine.COMPILER if place else ():
        with suppress(Exception):
            import_module(name)
    # The report then patches what came past us; other programs do not ask for one.
    past_us = engine.compiler_past_us()
    rows = [(row.id, row.state, row.reason) for row in report.collect(live=True).fixes]
    say(live=rows, compiler_past_us=past_us)
"""

Severity = Literal["wrong", "note"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One thing that was found. ``wrong`` keeps fixes, or what the environment asks for, from being in force.

    ``advice`` mends it; where a command does, ``command`` is that, for the shell.
    """

    code: str
    severity: Severity
    what: str
    advice: str
    command: str | None = None


@dataclass(frozen=True)
class Child:
    """What a fresh interpreter saw: whether the hook was ``armed`` there and, ``at_start``, our package loaded.

    ``file`` is that of the package which it loads, ``site`` the directories whose ``.pth`` files it reads. ``live``
    holds id, state and reason of each fix, where torch was loaded. ``error`` is what it wrote to stderr, last line.
    """

    armed: bool = False
    at_start: bool = False
    file: str | None = None
    site: list[str] = field(default_factory=list)
    user_site: str | None = None
    finders_ahead: list[str] = field(default_factory=list)
    compiler_past_us: list[str] = field(default_factory=list)
    live: list[tuple[str, str, str]] | None = None
    answered: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What ``doctor --json`` prints. ``file`` is the boot of the package that runs now, ``pth`` what is beside it.

    ``child`` is None where no interpreter could be started.
    """

    version: str
    python: str
    executable: str
    file: str
    pth: str | None
    torch: str | None
    child: Child | None
    findings: list[Finding]

    @property
    def well(self) -> bool:
        """Whether nothing is wrong; there may be notes."""
        return not any(finding.severity == "wrong" for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """The diagnosis as plain dictionaries, lists and strings."""
        return {**asdict(self), "well": self.well}


@dataclass(frozen=True)
class _Install:
    """A directory that holds our package, its ``.pth`` file or its metadata; ``version`` is None without the last.

    ``record`` are name and hash of the files that were installed; ``direct_url`` says where from (PEP 610), it is empty
    where that was an index.
    """

    folder: str
    has_package: bool
    has_pth: bool
    version: str | None
    installer: str
    record: list[tuple[str, str]]
    direct_url: dict[str, Any]

    @property
    def is_editable(self) -> bool:
        return bool(self.direct_url.get("dir_info", {}).get("editable"))


@dataclass(frozen=True)
class _Facts:
    """``active`` is about this process; ``root`` is the folder from which a fresh one loads the package."""

    active: bool
    child: Child
    installs: list[_Install]
    root: str | None


def examine(*, live: bool = False) -> Diagnosis:
    """Examine this environment; with ``live``, a fresh process also loads torch's compiler. It never raises."""
    findings: list[Finding] = []

    def attempt(what: str, function: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return function()
        except Exception as error:
            findings.append(_broken_check(what, error))
            return otherwise

    frozen = getattr(sys, "frozen", False)
    child = None
    # The executable of a frozen program is the program: to start it for an answer would never end.
    if sys.executable and not frozen:
        child = attempt("a fresh interpreter", partial(_ask_a_child, live), Child())
    active = watcher in sys.meta_path or engine.current_plan() is not None
    if child is None:
        if not active:
            what = "this is a frozen program" if frozen else "Python is embedded in this program"
            findings.append(Finding("frozen", "wrong", f"{what}: no .pth file is read", f"{_ACTIVATE}, in the program"))
    elif not child.answered:
        what = f"{sys.executable} cannot be started: {child.error or 'it gave no answer'}"
        command = _shell(sys.executable, "-c", "pass")
        findings.append(Finding("child-failed", "wrong", what, "see what it says", command))
    else:
        root = os.path.realpath(os.path.dirname(os.path.dirname(child.file))) if child.file else None
        nothing: list[_Install] = []
        installs = attempt("site directories", partial(_installs, child, root), nothing)
        facts = _Facts(active, child, installs, root)
        for what, check in _CHECKS.items():
            findings += attempt(what, lambda check=check: list(check(facts)), [])  # type: ignore[misc]
    for what, alone in _CHECKS_ALONE.items():
        findings += attempt(what, lambda alone=alone: list(alone()), [])  # type: ignore[misc]
    if child and child.answered and not child.armed and all(finding.severity == "note" for finding in findings):
        findings.append(_unexplained(child))
    file = Path(__file__).with_name("__init__.py")
    pth = file.parents[1] / PTH
    return Diagnosis(
        version=__version__,
        python=sys.version.split()[0],
        executable=sys.executable or "",
        file=str(file),
        pth=str(pth) if pth.is_file() else None,
        torch=attempt("torch", lambda: installed_version("torch"), None),
        child=child,
        findings=sorted(findings, key=lambda finding: finding.severity != "wrong"),
    )


def _broken_check(name: str, error: Exception) -> Finding:
    what = f"the check of {name} broke: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        command = _pip("install", error.name.partition(".")[0].replace("_", "-"))
        return Finding("check-failed", "wrong", what, "install what is missing", command)
    return Finding("check-failed", "wrong", what, "reinstall torch-forwardfix", _reinstall(_requirement(None)))


def _ask_a_child(live: bool) -> Child:
    command = [sys.executable, "-c", _QUESTIONS, *(["live"] if live else [])]
    try:
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Child(error=f"{type(error).__name__}: {error}")
    answers: dict[str, Any] = {}
    for line in process.stdout.splitlines():
        if line.startswith(_ANSWER):
            answers |= json.loads(line.removeprefix(_ANSWER)) | {"answered": True}
    last = next(reversed(process.stderr.strip().splitlines()), None)
    if process.returncode:
        last = f"exit status {process.returncode}: {last}"
    return Child(**answers, error=last)


def _install_in(folder: str) -> _Install:
    from importlib_metadata import distributions

    found = next(iter(distributions(name="torch-forwardfix", path=[folder])), None)
    record = csv.reader(((found and found.read_text("RECORD")) or "").splitlines())
    return _Install(
        folder,
        has_package=os.path.isfile(os.path.join(folder, PACKAGE, "__init__.py")),
        has_pth=os.path.isfile(os.path.join(folder, PTH)),
        version=found.version if found else None,
        installer=((found and found.read_text("INSTALLER")) or "an unknown installer").strip(),
        record=[(row[0], row[1]) for row in record if len(row) > 1 and row[1]],
        direct_url=json.loads((found and found.read_text("direct_url.json")) or "{}"),
    )


def _installs(child: Child, root: str | None) -> list[_Install]:
    folders = [os.path.realpath(folder) for folder in child.site]
    # A directory that another .pth file has added by site.addsitedir, as `uv run --with` does.
    if child.at_start and root is not None and root not in map(os.path.realpath, _python_path()):
        folders.append(root)
    found = [_install_in(folder) for folder in dict.fromkeys(folders)]
    return [install for install in found if install.has_package or install.has_pth or install.version]


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _loaded(facts: _Facts) -> _Install | None:
    """The install that a fresh interpreter loads."""
    return next((install for install in facts.installs if install.has_package and install.folder == facts.root), None)


def _this_process(facts: _Facts) -> Iterator[Finding]:
    if facts.active or not settings.read(()).enabled:
        return
    if sys.flags.no_site:
        what = f"Python was started with -S, so {PTH} was not read"
        yield Finding("no-site", "wrong", what, f"start Python without -S, or {_ACTIVATE}")
        return
    if not facts.child.armed:
        return
    flag = "-I" if sys.flags.isolated else "-E" if sys.flags.ignore_environment else "-s"
    if sys.flags.isolated or sys.flags.ignore_environment or sys.flags.no_user_site:
        what = f"Python was started with {flag} and did not read {PTH} in {facts.root}"
        yield Finding("isolated", "wrong", what, f"start Python without {flag}, or {_ACTIVATE}")
    else:
        what = "this process is not active, a fresh one is: torch-forwardfix may have been installed meanwhile"
        yield Finding("restart", "wrong", what, "start the program anew, or call torch_forwardfix.activate()")


def _site_directories(facts: _Facts) -> Iterator[Finding]:
    child = facts.child
    holding = [install for install in facts.installs if install.has_package or install.version]
    real = [install for install in holding if not install.is_editable]
    if child.armed:
        return
    if not holding:
        file = child.file or str(Path(__file__).with_name("__init__.py"))
        root = os.path.dirname(os.path.dirname(file))
        if child.user_site and os.path.realpath(root) == os.path.realpath(child.user_site):
            what = f"torch_forwardfix is in the user site {root}, which Python leaves out"
            if os.environ.get("PYTHONNOUSERSITE"):
                advice = f"PYTHONNOUSERSITE={os.environ['PYTHONNOUSERSITE']} says so"
                yield Finding("user-site", "wrong", what, advice, "unset PYTHONNOUSERSITE")
                return
        else:
            what = f"torch_forwardfix is loaded from {root}, where no .pth file is read"
        what = f"torch-forwardfix is not installed in {sys.executable}: {what}"
        # What pip sees through PYTHONPATH would satisfy it.
        command = _pip("install", _requirement(root), python=["-E"])
        yield Finding("not-installed", "wrong", what, f"install it, or {_ACTIVATE}", command)
    elif not real:
        source = _local_path(holding[0].direct_url.get("url", "")) or "torch-forwardfix"
        what = f"torch-forwardfix is an editable install of {source}, and those are not active"
        yield Finding("editable", "wrong", what, f"install a wheel of it, or {_ACTIVATE}", _reinstall(source))
    elif not any(install.has_pth for install in real):
        what = f"{PTH} is not in {real[0].folder}, though torch-forwardfix is installed there"
        command = _reinstall(_requirement(real[0].folder))
        yield Finding("no-pth", "wrong", what, "install it anew", command)


def _shadow(facts: _Facts) -> Iterator[Finding]:
    installed = next((install for install in facts.installs if install.has_package), None)
    if facts.root is None or installed is None or facts.root in [install.folder for install in facts.installs]:
        return
    entries = _python_path()
    ahead = [entry for entry in entries if os.path.realpath(entry) == facts.root]
    what = f"the folder {PACKAGE} in {facts.root} is loaded in place of the one that is installed in {installed.folder}"
    if ahead:
        rest = os.pathsep.join(entry for entry in entries if entry not in ahead)
        command = f"export PYTHONPATH={shlex.quote(rest)}" if rest else "unset PYTHONPATH"
        yield Finding("shadowed", "wrong", what, f"take {ahead[0]} out of PYTHONPATH", command)
    else:
        yield Finding("shadowed", "wrong", what, f"rename or remove {os.path.join(facts.root, PACKAGE)}")


def _copies(facts: _Facts) -> Iterator[Finding]:
    copies = [install for install in facts.installs if install.has_package]
    if len(copies) < 2:
        return
    from packaging.version import Version

    used = _loaded(facts) or copies[0]
    newest = max([used, *copies], key=lambda install: Version(install.version or "0"))
    others = [install for install in copies if install.folder != newest.folder]
    named = ", ".join(f"{install.folder} ({install.version or 'no metadata'})" for install in copies)
    what = f"torch-forwardfix is installed more than once: {named}; that in {used.folder} is loaded"
    files = [
        str(path)
        for install in others
        for path in sorted(Path(install.folder).iterdir())
        if path.name in (PACKAGE, PTH) or path.match("torch_forwardfix-*.dist-info")
    ]
    # A package manager removes what it sees first, and from a virtual environment nothing that lies outside.
    installers = ", ".join(sorted({install.installer for install in others}))
    advice = f"remove all but the newest, by {installers} or by hand"
    severity: Severity = "note" if newest is used else "wrong"
    yield Finding("two-copies", severity, what, advice, _shell("rm", "-r", *files))


def _start_file(facts: _Facts) -> Iterator[Finding]:
    for install in facts.installs:
        path = os.path.join(install.folder, START)
        if not os.path.isfile(path) or START in [name for name, _ in install.record]:
            continue
        suppressed = sys.version_info >= (3, 15)
        verb = "suppresses" if suppressed else "would suppress, from Python 3.15 on,"
        what = f"{path}, which torch-forwardfix did not install, {verb} {PTH}"
        severity: Severity = "wrong" if suppressed and not facts.child.armed else "note"
        yield Finding("start-file", severity, what, "remove it", _shell("rm", path))


def _hashes(facts: _Facts) -> Iterator[Finding]:
    install = _loaded(facts) or next((install for install in facts.installs if install.has_package), None)
    if install is None or install.is_editable:
        return
    command = _reinstall(_requirement(install.folder))
    if not install.record:
        what = f"torch-forwardfix in {install.folder} has no RECORD, so its files cannot be checked"
        # What has no RECORD cannot be uninstalled, but written over.
        over = _pip("install", "--ignore-installed", "--no-deps", _requirement(install.folder))
        yield Finding("no-record", "note", what, "install it anew", over)
    wrong = []
    for name, stated in install.record:
        if name != PTH and not name.startswith(f"{PACKAGE}/"):
            continue
        algorithm, _, digest = stated.partition("=")
        try:
            content = Path(install.folder, name).read_bytes()
        except OSError as error:
            if name != PTH:  # the .pth file has a finding of its own
                wrong.append(f"{name} ({error.strerror})")
            continue
        if base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).decode().rstrip("=") != digest:
            wrong.append(name)
    if wrong:
        what = f"in {install.folder} these files are not what was installed, says RECORD: {_some(wrong)}"
        yield Finding("hash-mismatch", "wrong", what, "install it anew", command)


def _bytecode(facts: _Facts) -> Iterator[Finding]:
    install = _loaded(facts)
    if install is None or sys.implementation.cache_tag is None:
        return
    files = sorted(Path(install.folder, PACKAGE).rglob("*.py"))
    missing = [file for file in files if not os.path.isfile(cache_from_source(str(file)))]
    unwritable = [file for file in missing if not _can_be_written(Path(cache_from_source(str(file))))]
    if sys.dont_write_bytecode:
        unwritable, why = missing, "Python is told to write none (-B or PYTHONDONTWRITEBYTECODE)"
    else:
        why = "none can be written there"
    if not unwritable:
        return
    folder = os.path.join(install.folder, PACKAGE)
    what = f"{len(unwritable)} of {len(files)} modules in {folder} have no bytecode, and {why}: starts take longer"
    optimized = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    command = _shell(sys.executable, *optimized, "-m", "compileall", "-q", folder)
    yield Finding("no-bytecode", "note", what, "write it once, as the owner of the folder", command)


def _can_be_written(path: Path) -> bool:
    nearest = next(parent for parent in path.parents if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _finders(facts: _Facts) -> Iterator[Finding]:
    if facts.child.finders_ahead:
        what = f"asked before torch_forwardfix: {', '.join(facts.child.finders_ahead)}"
        advice = "nothing to do unless one of them loads torch's modules; this tells"
        command = _shell(sys.executable, "-m", PACKAGE, "doctor", "--live")
        yield Finding("finders-ahead", "note", what, advice, command)


def _past_us(facts: _Facts) -> Iterator[Finding]:
    if not facts.child.compiler_past_us or not facts.child.armed:
        return
    names = " and ".join(facts.child.compiler_past_us)
    what = f"{names} was loaded past the hook"
    if facts.child.finders_ahead:
        advice = f"remove {', '.join(facts.child.finders_ahead)}"
    else:
        advice = "let no .pth file, sitecustomize or usercustomize import it when Python starts"
    yield Finding("loaded-past", "wrong", what, f"{advice}, or call torch_forwardfix.activate() afterwards")


def _fixes(facts: _Facts) -> Iterator[Finding]:
    if facts.child.live is None:
        if facts.child.error is not None and facts.child.error.startswith("exit status"):
            what = f"the interpreter that loaded torch died with {facts.child.error}"
            yield Finding(
                "child-failed", "wrong", what, "see what it says", _shell(sys.executable, "-c", "import torch")
            )
        return
    broken = catalog.load().broken
    alike: dict[tuple[str, str], list[str]] = {}
    for id, state, reason in facts.child.live:
        if state in ("missed", "drifted", "failed", "foreign") and id not in broken:
            alike.setdefault((state, reason), []).append(id)
        elif state == "waiting" and "cannot be imported" in reason:
            alike.setdefault(("torch-broken", reason), []).append(id)
    for (state, reason), ids in alike.items():
        command = f"export {settings.DISABLE}={','.join([*_disabled(), *ids])}"
        what = f"{', '.join(ids)}: {state}: {reason}"
        if state == "torch-broken":
            compiler = reason.startswith(("torch._dynamo cannot", "torch._inductor cannot"))
            what = f"torch does not load for {_some(ids)}: {reason}"
            severity: Severity = "wrong" if compiler else "note"
            yield Finding(state, severity, what, *_torch_anew())
        elif state == "missed":
            advice = "call torch_forwardfix.activate() before torch is imported"
            yield Finding("loaded-past", "wrong", what, advice)
        elif state == "foreign":
            advice = "nothing to do, the other patch is in force; this leaves the fix out"
            yield Finding("foreign", "note", what, advice, command)
        else:
            yield Finding(state, "wrong", what, "upgrade torch-forwardfix; this leaves the fix out", command)


def _disabled() -> list[str]:
    return [id.strip() for id in os.environ.get(settings.DISABLE, "").split(",") if id.strip()]


def _switches() -> Iterator[Finding]:
    wishes = settings.read(list(catalog.load().fixes))
    if not wishes.enabled:
        what = f"{settings.SWITCH}={os.environ[settings.SWITCH]} switches everything off"
        yield Finding("opted-out", "wrong", what, "take it out of the environment", f"unset {settings.SWITCH}")
    elif wishes.disabled:
        names = [name for name in (settings.DISABLE, settings.ONLY) if os.environ.get(name)]
        what = f"{' and '.join(names)} switch off {_some(sorted(wishes.disabled))}"
        yield Finding("opted-out", "note", what, "to have them", f"unset {' '.join(names)}")
    for problem in wishes.problems:
        name = problem.split("=")[0].split()[0]
        yield Finding("bad-value", "wrong", problem, f"correct {name}, or take it out", f"unset {name}")


def _plug_ins() -> Iterator[Finding]:
    for name, outcome in catalog.load().broken.items():
        source, is_plug_in, _ = name.partition(":")
        severity: Severity = "wrong" if outcome.state == "failed" else "note"
        if is_plug_in:
            yield Finding("plug-in", severity, outcome.reason, "upgrade or remove it", _pip("uninstall", source))
        elif name == "plug-ins":
            yield Finding("plug-in", severity, f"plug-ins {outcome.reason}", "mend the metadata that it names")
        else:
            root = str(Path(__file__).parents[1])
            what = f"the fix {name} {outcome.reason}"
            yield Finding("failed", severity, what, "install it anew", _reinstall(_requirement(root)))


def _torch() -> Iterator[Finding]:
    folders = package_folders("torch")
    version = installed_version("torch")
    if version is None:
        what = f"torch is not installed in {sys.executable}, so there is nothing to fix"
        yield Finding("no-torch", "note", what, "install it", _pip("install", "torch"))
        return
    missing = [
        name
        for name in ("_dynamo", "_inductor")
        if not any(os.path.isdir(os.path.join(folder, name)) for folder in folders)
    ]
    if missing:
        place = folders[0] if folders else "every directory of sys.path"
        what = f"torch {version} is installed by half: {' and '.join(missing)} is missing in {place}"
        yield Finding("torch-broken", "wrong", what, *_torch_anew())


def _torch_anew() -> tuple[str, str | None]:
    from importlib_metadata import PackageNotFoundError, version

    try:
        found = version("torch")
    except PackageNotFoundError:
        found = installed_version("torch") or ""
    # A version like 2.10.0+rocm7.2 comes from an index that we do not know.
    if not found or "+" in found:
        return f"install torch {found} anew, from where it came", None
    return "install it anew", _reinstall(f"torch=={found}")


_CHECKS: dict[str, Callable[[_Facts], Iterator[Finding]]] = {
    "this process": _this_process,
    "the .pth file": _site_directories,
    "sys.path": _shadow,
    "copies": _copies,
    "the .start file": _start_file,
    "RECORD": _hashes,
    "bytecode": _bytecode,
    "sys.meta_path": _finders,
    "loaded modules": _past_us,
    "fixes": _fixes,
}
_CHECKS_ALONE: dict[str, Callable[[], Iterator[Finding]]] = {
    "the environment": _switches,
    "plug-ins": _plug_ins,
    "torch": _torch,
}


def _unexplained(child: Child) -> Finding:
    said = f"; it says: {child.error}" if child.error else ""
    where = f"loads {child.file}" if child.at_start else "does not load torch_forwardfix"
    what = f"a fresh interpreter {where} when it starts and does not arm the hook{said}"
    advice = f"look what runs when Python starts (.pth files, sitecustomize), or {_ACTIVATE}"
    return Finding("not-armed", "wrong", what, advice, _shell(sys.executable, "-X", "importtime", "-c", "pass"))


def _requirement(folder: str | None) -> str:
    """What pip is to install in place of what is in ``folder``: that from where it came, if it is still there."""
    if folder is None:
        return "torch-forwardfix"
    if os.path.isfile(os.path.join(folder, "pyproject.toml")):
        return folder
    install = _install_in(folder)
    url, repository = install.direct_url.get("url"), install.direct_url.get("vcs_info")
    if url and repository:
        return f"{repository['vcs']}+{url}@{repository['commit_id']}"
    local = _local_path(url or "")
    if url and (local is None or os.path.exists(local)):
        return local or str(url)
    return f"torch-forwardfix=={install.version}" if install.version else "torch-forwardfix"


def _local_path(url: str) -> str | None:
    parts = urlsplit(url)
    return url2pathname(parts.path) if parts.scheme == "file" else None


def _reinstall(requirement: str) -> str:
    return _pip("install", "--force-reinstall", "--no-deps", requirement)


def _pip(verb: str, *arguments: str, python: Sequence[str] = ()) -> str:
    """The command that changes the packages of this interpreter: by pip, or by uv where there is no pip."""
    if find_spec("pip"):
        agreed = ["--yes"] if verb == "uninstall" else []
        return _shell(sys.executable, *python, "-m", "pip", verb, *agreed, *arguments)
    anew = ("--force-reinstall", "--ignore-installed")
    renamed = ["--reinstall" if argument in anew else argument for argument in arguments]
    return _shell("uv", "pip", verb, "--python", sys.executable, *renamed)


def _shell(*words: str) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
