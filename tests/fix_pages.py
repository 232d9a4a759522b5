"""docs/fixes: a page for each bug, made from its file and the evidence, and an index.

``python tests/fix_pages.py`` writes them anew, with torch_forwardfix installed or the repository on the path.
"""

from __future__ import annotations

import itertools
import re
from inspect import getdoc, getmodule
from pathlib import Path

from packaging.version import Version

from torch_forwardfix import catalog
from torch_forwardfix.fix import KINDS, Bug, Fix, Unfixed
from torch_forwardfix.status_text import KIND_NAMES

FOLDER = Path(__file__).parents[1] / "docs" / "fixes"
INDEX = "README.md"

HEAD = """\
# The bugs

One page for each bug, made from its file in `torch_forwardfix/` by `PYTHONPATH=. python tests/fix_pages.py`. `python -m
torch_forwardfix show ID` prints the same, and what becomes of it on your machine.
"""


def pages() -> dict[str, str]:
    """The pages by file name, the index among them."""
    fixes = catalog.load().fixes
    bugs: dict[str, Bug] = {**fixes, **catalog.unfixed(fixes)}
    ours = {id: bug for id, bug in bugs.items() if bug.reproduce.__module__.startswith("torch_forwardfix.")}
    return {INDEX: _index(ours), **{f"{id}.md": _page(bug) for id, bug in sorted(ours.items())}}


def _index(bugs: dict[str, Bug]) -> str:
    parts = [HEAD]
    for kind in KINDS:
        rows = [bug for _, bug in sorted(bugs.items()) if bug.kind == kind]
        if rows:
            lines = "".join(
                f"| [{bug.id}]({bug.id}.md) | {_escaped(bug.title)}{_mark(bug)} | {_range(bug)} | {_since(bug)} |\n"
                for bug in rows
            )
            heads = "| id | symptom | seen on | upstream |\n|---|---|---|---|\n"
            parts.append(f"## {KIND_NAMES[kind].capitalize()}\n\n{heads}{lines}")
    return "\n".join(parts)


def _mark(bug: Bug) -> str:
    return " (**not fixed here**)" if isinstance(bug, Unfixed) else ""


def _since(bug: Bug) -> str:
    return f"{next(iter(bug.affects))} {bug.fixed_in}" if bug.fixed_in else "open"


def _seen(bug: Bug) -> list[str]:
    return list(dict.fromkeys(release for releases in catalog.seen_on(bug).values() for release in releases))


def _range(bug: Bug) -> str:
    """The releases that showed the bug: of each unbroken row of those that were asked, the first and the last."""
    seen = set(_seen(bug))
    asked: dict[str, list[str]] = {}
    for row in catalog.evidence():
        if row["fix"] == bug.id and row["without"] != "not applicable":
            name, _, version = row["release"].partition(" ")
            asked.setdefault(name, []).append(version)
    spans = []
    for name, versions in asked.items():
        ordered = sorted(set(versions), key=Version)
        runs = [
            list(run)
            for is_seen, run in itertools.groupby(ordered, key=lambda version, name=name: f"{name} {version}" in seen)
            if is_seen
        ]
        spans += [f"{name} {run[0]}" + (f" to {run[-1]}" if len(run) > 1 else "") for run in runs]
    return ", ".join(spans)


def _page(bug: Bug) -> str:
    links = [
        f"[{reference}](https://github.com/{repository}/issues/{number})"
        for reference in bug.upstream
        for repository, _, number in [reference.partition("#")]
    ]
    rows = {
        "kind": KIND_NAMES[bug.kind],
        "seen on": catalog.told(catalog.seen_on(bug)) or "no release yet",
        "upstream": ", ".join(links) or "no report",
        "fixed in": _since(bug) if bug.fixed_in else "no release yet",
        "range": ", ".join(f"{name} `{specifier}`" for name, specifier in bug.affects.items()),
    }
    if isinstance(bug, Fix):
        rows |= {
            "patches": ", ".join(f"`{target}`" for target in bug.targets),
            "generated code": "changed: the fix is in the key of torch's compile caches"
            if bug.changes_codegen
            else "as before",
        }
    story = getdoc(getmodule(bug.reproduce)) or ""
    parts = [f"# {bug.id}\n", f"**{_escaped(bug.title)}**\n", *(f"- {name}: {value}" for name, value in rows.items())]
    parts.append(f"\n{_markdown(story)}")
    if isinstance(bug, Unfixed):
        parts.append(f"\nThere is no fix here: {bug.why}.\n\nWhat to do: {bug.workaround}.")
    file = f"torch_forwardfix/{'fixes' if isinstance(bug, Fix) else 'unfixed'}/{bug.id.replace('-', '_')}.py"
    return "\n".join(parts) + f"\n\nThe whole of it: [`{file}`](../../{file}).\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _markdown(story: str) -> str:
    """The docstring, whose code has two backquotes."""
    return re.sub(r"``(.+?)``", r"`\1`", story, flags=re.DOTALL)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages()
    for file in FOLDER.glob("*.md"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
