"""docs/evidence.md and docs/evidence.html: what every reproduction showed on every release, from evidence.json.

``python tests/evidence_page.py`` writes both anew; torch_forwardfix must be importable.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from torch_forwardfix import catalog
from torch_forwardfix.fix import KINDS, Bug
from torch_forwardfix.status_text import KIND_NAMES

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "torch_forwardfix" / "evidence.json"
PAGE = ROOT / "docs" / "evidence.md"
HTML = ROOT / "docs" / "evidence.html"
TEMPLATE = ROOT / "tests" / "evidence_page.html"

Row = Mapping[str, str]

HEADINGS = {kind: words.capitalize() for kind, words in KIND_NAMES.items()}
# By what was seen without us and with us: a sign, a word, and what it means.
SEEN = {
    ("present", "absent"): ("●", "fixed", "the bug is there without us, and gone with us"),
    ("present", "present"): ("✗", "stays", "the bug is there, without us and with us"),
    ("absent", "absent"): ("·", "absent", "this release does not have the bug"),
    ("absent", "present"): ("!", "ours", "the bug is there with us alone"),
    ("not applicable", "not applicable"): ("—", "n/a", "the bug is not one of this distribution"),
}
# How it was seen; a row that says nothing else was run on the CPU.
HOW = {
    "cpu": "on the CPU",
    "generated": "in the code that is generated for a GPU, which was not run",
    "gpu": "on a GPU",
}

HEAD = """\
# Evidence

What the reproduction of each bug showed on each release, in fresh processes, without torch-forwardfix and with it.
[evidence.html](evidence.html) is the same with filters: open it from the disk. `nox --session evidence` runs the
reproductions anew and writes both pages, and `python -m torch_forwardfix verify` repeats them on your machine.
"""


@dataclass(frozen=True)
class Table:
    """The rows of the evidence by bug and release; ``kinds`` are the bugs by kind, in the order of KINDS."""

    rows: Sequence[Row]
    kinds: Mapping[str, Sequence[Bug]]
    cells: Mapping[tuple[str, str], Sequence[Row]]

    def releases(self, bugs: Collection[str]) -> list[str]:
        """The releases that the evidence names for these bugs, in its order."""
        return list(dict.fromkeys(row["release"] for row in self.rows if row["fix"] in bugs))


def table(bugs: Mapping[str, Bug], rows: Sequence[Row]) -> Table:
    """Raises KeyError where a row is about a bug that ``bugs`` does not hold."""
    known = [bugs[id] for id in sorted({row["fix"] for row in rows})]
    kinds = {kind: [bug for bug in known if bug.kind == kind] for kind in KINDS}
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["fix"], row["release"]), []).append(row)
    return Table(rows, {kind: some for kind, some in kinds.items() if some}, cells)


def seen(row: Row) -> tuple[str, str, str]:
    return SEEN[row["without"], row["with"]]


def how(row: Row) -> str:
    """A key of ``HOW``; in the evidence, ``gpu`` comes with the name of the GPU."""
    return row.get("by", "cpu").partition(" ")[0]


def hows(rows: Iterable[Row]) -> dict[str, str]:
    """The ways in which these rows were seen, and what each means, with the names of the GPUs."""
    used = {how(row) for row in rows}
    gpus = sorted({row["by"].removeprefix("gpu ") for row in rows if how(row) == "gpu"})
    meanings = {**HOW, "gpu": f"{HOW['gpu']}: {', '.join(gpus)}"}
    return {name: meaning for name, meaning in meanings.items() if name in used}


def where(rows: Iterable[Row]) -> str:
    pythons = sorted({row["python"] for row in rows}, key=lambda version: [int(part) for part in version.split(".")])
    return f"Seen with Python {', '.join(pythons)}."


def page(made: Table) -> str:
    """The page in Markdown."""
    used = {seen(row) for row in made.rows}
    legend = [f"- {sign} {meaning}" for sign, word, meaning in SEEN.values() if (sign, word, meaning) in used]
    ways = hows(made.rows)
    if set(ways) != {"cpu"}:
        legend += [f"- {f'<sup>{name}</sup>' if name != 'cpu' else 'no mark:'} {ways[name]}" for name in ways]
    parts = [HEAD, "\n".join(legend) + "\n", where(made.rows) + "\n"]
    for kind, bugs in made.kinds.items():
        releases = made.releases({bug.id for bug in bugs})
        lines = [f"| | {' | '.join(release.replace(' ', '<br>') for release in releases)} |"]
        lines.append("|---|" + ":-:|" * len(releases))
        for bug in bugs:
            cells = (" ".join(map(_mark, made.cells.get((bug.id, release), ()))) for release in releases)
            title = bug.title.replace("|", "\\|")
            lines.append(f'| <a id="{bug.id}"></a>[{bug.id}](fixes/{bug.id}.md): {title} | {" | ".join(cells)} |')
        parts.append(f"## {HEADINGS[kind]}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _mark(row: Row) -> str:
    return seen(row)[0] + (f"<sup>{how(row)}</sup>" if how(row) != "cpu" else "")


def html(made: Table) -> str:
    """The page in HTML: all of it, of which the script in the template hides what is not asked for."""
    bugs = {bug.id for some in made.kinds.values() for bug in some}
    releases = made.releases(bugs)
    used = {seen(row) for row in made.rows}
    words = [each for each in SEEN.values() if each in used]
    ways = hows(made.rows)
    legend = [f'<dt data-seen="{word}">{sign} {word}</dt><dd>{meaning}</dd>' for sign, word, meaning in words]
    legend += [f"<dt><small>{name}</small></dt><dd>{escape(meaning)}</dd>" for name, meaning in ways.items()]
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        legend="\n".join(legend),
        where=where(made.rows),
        kinds="".join(_option(kind, HEADINGS[kind]) for kind in made.kinds),
        releases="".join(_option(release, release) for release in releases),
        words="".join(_option(word, word) for _, word, _ in words),
        ways="".join(_option(way, way) for way in ways),
        count=len(bugs),
        heads="\n".join(_head(release, made.rows) for release in releases),
        bodies="\n".join(_body(kind, some, releases, made) for kind, some in made.kinds.items()),
    )


def _option(value: str, text: str) -> str:
    return f'<option value="{escape(value)}">{escape(text)}</option>'


def _head(release: str, rows: Iterable[Row]) -> str:
    name, _, version = release.partition(" ")
    builds = sorted({row["torch"] for row in rows if row["release"] == release})
    shorter = ", ".join(build.removeprefix(version) if name == "torch" else f"torch {build}" for build in builds)
    small = f"<br><small>{escape(shorter)}</small>" if shorter else ""
    return f'<th scope="col" data-release="{escape(release)}">{escape(name)}<br>{escape(version)}{small}</th>'


def _body(kind: str, bugs: Iterable[Bug], releases: Sequence[str], made: Table) -> str:
    lines = [f'<tbody data-kind="{kind}">']
    lines.append(f'<tr class="kind"><th scope="rowgroup" colspan="{len(releases) + 1}">{HEADINGS[kind]}</th></tr>')
    for bug in bugs:
        upstream = ", ".join(f'<a href="{_address(name)}">{name.partition("/")[2]}</a>' for name in bug.upstream)
        fixed_in = f"fixed in {bug.fixed_in}" if bug.fixed_in else "fixed in no release yet"
        lines.append(
            f'<tr id="{bug.id}"><th scope="row"><a href="#{bug.id}"><code>{bug.id}</code></a><br>{escape(bug.title)}'
            f"<br><small>{fixed_in}; {upstream}</small></th>"
        )
        for release in releases:
            cell = "<br>".join(map(_run, made.cells.get((bug.id, release), ())))
            lines.append(f'<td data-release="{escape(release)}">{cell}</td>')
        lines.append("</tr>")
    return "\n".join([*lines, "</tbody>"])


def _address(reference: str) -> str:
    repository, _, number = reference.partition("#")
    return f"https://github.com/{repository}/issues/{number}"


def _run(row: Row) -> str:
    sign, word, _ = seen(row)
    rest = {key: value for key, value in row.items() if key not in ("fix", "release")}
    data = " ".join(f'data-{key}="{escape(value)}"' for key, value in rest.items())
    said = escape("; ".join(f"{key}: {value}" for key, value in rest.items()))
    mark = f" <small>{how(row)}</small>" if how(row) != "cpu" else ""
    return f'<span data-seen="{word}" data-how="{how(row)}" {data} title="{said}">{sign} {word}{mark}</span>'


def here() -> Table:
    """The evidence of this source tree, about the bugs of the package that is importable."""
    rows = json.loads(EVIDENCE.read_text("utf-8"))["rows"]
    return table({**catalog.load().fixes, **catalog.unfixed()}, rows)


if __name__ == "__main__":
    PAGE.write_text(page(here()), encoding="utf-8")
    HTML.write_text(html(here()), encoding="utf-8")
