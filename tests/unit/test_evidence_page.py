"""docs/evidence.md and docs/evidence.html say what evidence.json says, and a browser filters the latter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

import evidence_page as evidence  # noqa: E402

sys.path.remove(str(TESTS))

MADE = evidence.here()
ROWS = MADE.rows
BUGS = {bug.id: bug for bugs in MADE.kinds.values() for bug in bugs}

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("FORWARDFIX_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="NO BROWSER HERE: install chromium; nox --session browser does not do without"
)

SOME = (
    {"fix": "aot-builtins", "release": "torch 2.9.0", "without": "present", "with": "absent", "state": "applied"},
    {"fix": "aot-builtins", "release": "torch 2.99.0", "without": "absent", "with": "absent", "state": "not-affected"},
    {"fix": "mul-zero-nan", "release": "vllm 0.99.0", "without": "present", "with": "present", "state": "drifted"},
)
GENERATED, ON_GPU = {"by": "generated"}, {"by": "gpu NVIDIA <T1000>"}


def small(*more):
    """A table of a few rows, ``more`` of them seen in other ways."""
    rows = [{**row, "python": "3.12.1", "torch": "2.9.0+cu128", **extra} for row, extra in zip(SOME, more, strict=True)]
    return evidence.table(BUGS, rows)


class Page(HTMLParser):
    """What a reader sees: ``rows``, in the form of the evidence file, ``columns``, ``kinds``, ``links``, ``form``."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.columns, self.kinds, self.links, self.ids, self.tags, self.output = [], [], [], [], [], [], ""
        self.inside, self.hidden, self.form_hidden = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag in ("meta", "br"):
            return
        self.inside.append((tag, found))
        self.hidden.append("hidden" in found)
        if tag == "form":
            self.form_hidden = "hidden" in found
        if any(self.hidden):
            return
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag == "tbody":
            self.kinds.append(found["data-kind"])
        if tag == "th" and "data-release" in found:
            self.columns.append(found["data-release"])
        if tag == "span":
            said = {name.removeprefix("data-"): value for name, value in found.items() if name.startswith("data-")}
            del said["seen"], said["how"]
            (row,) = (each["id"] for inside, each in self.inside if inside == "tr")
            (cell,) = (each["data-release"] for inside, each in self.inside if inside == "td")
            self.rows.append({"fix": row, "release": cell, **said})

    def handle_data(self, data):
        if self.inside and self.inside[-1][0] == "output":
            self.output += data

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag
        self.hidden.pop()


def in_order(rows):
    return sorted(rows, key=lambda row: sorted(row.items()))


def test_pages_are_made_from_the_evidence():
    again = "run `python tests/evidence_page.py`"
    assert evidence.PAGE.read_text("utf-8") == evidence.page(MADE), again
    assert evidence.HTML.read_text("utf-8") == evidence.html(MADE), again


def test_html_holds_every_row_of_the_evidence_and_no_other():
    page = Page(evidence.HTML.read_text("utf-8"))
    assert not page.inside
    assert in_order(page.rows) == in_order(ROWS)
    assert page.columns == list(dict.fromkeys(row["release"] for row in ROWS))
    assert sorted(page.ids) == sorted(BUGS)


def test_html_needs_nothing_from_elsewhere():
    page = Page(evidence.HTML.read_text("utf-8"))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert not attributes.keys() & {"src", "srcset", "action"}, (tag, attributes)
    assert not re.search(r"url\(|@import|fetch\(|\bimport\b", evidence.TEMPLATE.read_text("utf-8"))
    link = r"#[\w-]+|https://github\.com/[\w.-]+/[\w.-]+/issues/\d+"
    assert [found for found in page.links if not re.fullmatch(link, found)] == []


def test_html_without_script_shows_all_and_no_filters():
    assert Page(evidence.HTML.read_text("utf-8")).form_hidden is True


def test_markdown_holds_every_bug_once_with_an_anchor_and_a_link():
    found = re.findall(r'<a id="([^"]+)"></a>\[([^]]+)\]\(([^)]+)\)', evidence.PAGE.read_text("utf-8"))
    assert sorted(found) == sorted((id, id, f"fixes/{id}.md") for id in BUGS)
    assert [link for _, _, link in found if not (evidence.PAGE.parent / link).exists()] == []


@pytest.mark.parametrize("id", ["aot-builtins", "set-mutation-lost"])
def test_show_leads_to_the_row(sandbox, id):
    (said,) = re.findall(r"^evidence: +(\S+)#(\S+)$", sandbox.run("-m", "torch_forwardfix", "show", id).stdout, re.M)
    assert said == (evidence.PAGE.relative_to(evidence.ROOT).as_posix(), id)


def test_markdown_tells_what_was_seen_and_how():
    head, wrong, crashes = evidence.page(small({}, GENERATED, ON_GPU)).split("\n## ")
    assert head.endswith(
        "\n\n- ● the bug is there without us, and gone with us\n- ✗ the bug is there, without us and with us\n"
        "- · this release does not have the bug\n- no mark: on the CPU\n"
        "- <sup>generated</sup> in the code that is generated for a GPU, which was not run\n"
        "- <sup>gpu</sup> on a GPU: NVIDIA <T1000>\n\nSeen with Python 3.12.1.\n"
    )
    title = BUGS["mul-zero-nan"].title
    assert wrong == (
        "Wrong results\n\n| | vllm<br>0.99.0 |\n|---|:-:|\n"
        f'| <a id="mul-zero-nan"></a>[mul-zero-nan](fixes/mul-zero-nan.md): {title} | ✗<sup>gpu</sup> |\n'
    )
    title = BUGS["aot-builtins"].title
    assert crashes == (
        "Crashes\n\n| | torch<br>2.9.0 | torch<br>2.99.0 |\n|---|:-:|:-:|\n"
        f'| <a id="aot-builtins"></a>[aot-builtins](fixes/aot-builtins.md): {title} | ● | ·<sup>generated</sup> |\n'
    )


def test_several_runs_on_one_release_are_all_told():
    made = small({}, GENERATED, ON_GPU)
    twice = evidence.table(BUGS, [*made.rows, {**made.rows[0], **ON_GPU}])
    assert "| ● ●<sup>gpu</sup> |" in evidence.page(twice)
    assert in_order(Page(evidence.html(twice)).rows) == in_order(twice.rows)


def test_row_about_a_bug_that_nobody_knows_is_refused():
    with pytest.raises(KeyError, match="nonsense"):
        evidence.table(BUGS, [{**ROWS[0], "fix": "nonsense"}])


def browse(folder, text, fragment=""):
    """The page after its script has run, and what scripts logged."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    profile = folder / "profile"
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", f"{file.as_uri()}#{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def asked(kind="", release="", without="", shown=""):
    """The rows that a reader should see: those in the column asked for, of the bugs that have one that fits."""
    column = [row for row in ROWS if release in ("", row["release"]) and kind in ("", BUGS[row["fix"]].kind)]
    fitting = {
        row["fix"] for row in column if without in ("", row["without"]) and (not shown or evidence.how(row) == shown)
    }
    return [row for row in column if row["fix"] in fitting]


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ({}, asked()),
        ({"kind": "crash"}, asked(kind="crash")),
        ({"release": "torch 2.10.0"}, asked(release="torch 2.10.0")),
        ({"kind": "wrong-result", "release": "torch 2.12.0"}, asked("wrong-result", "torch 2.12.0")),
        ({"kind": "wrong-result", "release": "vllm 0.16.0"}, []),
        ({"seen": "absent", "release": "torch 2.15.0"}, asked(release="torch 2.15.0", without="absent")),
        ({"how": "cpu"}, asked(shown="cpu")),
        ({"kind": "nonsense", "what": "else"}, asked()),
    ],
    ids=lambda value: urlencode(value) or "all" if isinstance(value, dict) else "",
)
def test_browser_filters_by_the_fragment(tmp_path, fragment, expected):
    page, errors = browse(tmp_path, evidence.HTML.read_text("utf-8"), urlencode(fragment))
    assert errors == []
    assert page.form_hidden is False
    assert in_order(page.rows) == in_order(expected)
    assert page.output == f"{len({row['fix'] for row in expected})} of {len(BUGS)} bugs"
    assert page.kinds == [kind for kind in MADE.kinds if any(BUGS[row["fix"]].kind == kind for row in expected)]
    release = fragment.get("release")
    assert page.columns == ([release] if release else MADE.releases(BUGS))


@needs_browser
def test_browser_filters_by_how_it_was_seen(tmp_path):
    page, errors = browse(tmp_path, evidence.html(small({}, GENERATED, ON_GPU)), "how=gpu")
    assert (errors, page.ids) == ([], ["mul-zero-nan"])
    page, errors = browse(tmp_path, evidence.html(small({}, GENERATED, ON_GPU)), "how=generated")
    assert (errors, page.ids) == ([], ["aot-builtins"])


DRIVER = """<script>
"use strict";
const choose = (name, value) => {{
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("change", {{bubbles: true}}));
}};
const say = (...words) => form.querySelector("output").value = words.join(" ");
{steps}
</script>
"""


def driven(folder, steps, fragment=""):
    text = evidence.HTML.read_text("utf-8").replace("</body>", DRIVER.format(steps=steps) + "</body>")
    return browse(folder, text, fragment)


@needs_browser
def test_browser_filters_by_what_the_reader_chooses(tmp_path):
    page, errors = driven(tmp_path, "choose('kind', 'crash'); choose('release', 'torch 2.10.0')")
    assert errors == []
    assert in_order(page.rows) == in_order(asked("crash", "torch 2.10.0"))


@needs_browser
def test_browser_keeps_the_choice_in_the_address(tmp_path):
    steps = "choose('kind', 'crash'); choose('release', 'torch 2.10.0'); choose('kind', ''); say(location.hash)"
    assert driven(tmp_path, steps)[0].output == "#release=torch+2.10.0"


@needs_browser
def test_browser_goes_to_the_bug_whose_id_is_the_fragment(tmp_path):
    id = list(BUGS)[-1]
    place = "const target = document.querySelector(':target'), {top} = target.getBoundingClientRect()"
    page, errors = driven(tmp_path, f"onload = () => {{ {place}; say(target.id, top > 0 && top < innerHeight) }}", id)
    assert (errors, page.output) == ([], f"{id} true")
    assert sorted(page.ids) == sorted(BUGS)


@needs_browser
def test_browser_shows_all_again_after_reset(tmp_path):
    page, errors = driven(tmp_path, "form.querySelector('button').click()", "kind=crash")
    assert errors == []
    assert in_order(page.rows) == in_order(ROWS)


@needs_browser
def test_error_in_a_script_would_be_seen(tmp_path):
    page, errors = driven(tmp_path, "throw new Error('of the test')")
    assert len(page.rows) == len(ROWS)
    assert ["of the test" in line for line in errors] == [True]
