"""docs/performance.md, and what README.md quotes of it, say what docs/performance.json says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import page as performance  # noqa: E402

sys.path.remove(str(BENCHMARKS))

RESULTS = json.loads(performance.RESULTS.read_text("utf-8"))
README = performance.README.read_text("utf-8")


def test_page_is_made_from_the_figures():
    assert performance.PAGE.read_text("utf-8") == performance.page(RESULTS)


def test_readme_quotes_the_figures():
    assert performance.in_readme(README) == performance.quotes(RESULTS)
