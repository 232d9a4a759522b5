"""Option ``--rows FILE``: what the tests that carry the mark ``row`` showed, for docs/compatibility.md.

``@pytest.mark.row(SECTION, TEXT)`` says in one short line what a reader learns from the test. ``{name}`` in the text is
the test's parameter of that name. Tests with the same text are one row, with the worst of their outcomes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# pytest puts the folder of every conftest on sys.path. From here tests/vllm could be imported in the place of vllm.
sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]

WORST_FIRST = ("failed", "skipped", "passed", "not run")


def pytest_addoption(parser):
    parser.addoption("--rows", metavar="FILE", help="write what the tests marked `row` showed to this JSON file")


def pytest_configure(config):
    # Workers of pytest-xdist hand their reports to the process that started them.
    if config.getoption("--rows") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rows(Path(config.getoption("--rows"))))


def pytest_collection_modifyitems(items):
    for item in items:
        parameters = getattr(item, "callspec", None)
        for mark in item.iter_markers("row"):
            section, text = mark.args
            item.user_properties.append(("row", [section, text.format(**(parameters.params if parameters else {}))]))


class Rows:
    def __init__(self, file):
        self.file = file
        self.seen = {}

    def note(self, properties, outcome, reason=""):
        for name, row in properties:
            if name == "row":
                known = self.seen.get(tuple(row), ("not run", ""))
                self.seen[tuple(row)] = min(known, (outcome, reason), key=lambda seen: WORST_FIRST.index(seen[0]))

    def pytest_collection_finish(self, session):
        for item in session.items:
            self.note(item.user_properties, "not run")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            # Of a failure the traceback is left out: it names files of this machine.
            reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
            self.note(report.user_properties, report.outcome, reason)

    def pytest_sessionfinish(self):
        python = ".".join(map(str, sys.version_info[:2]))
        rows = [
            {"section": section, "text": text, "python": python, "outcome": outcome, "reason": reason}
            for (section, text), (outcome, reason) in self.seen.items()
        ]
        self.file.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
