"""docs/fixes says what the files of the fixes and the evidence say."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
sys.path.insert(0, TESTS)

import fix_pages  # noqa: E402

sys.path.remove(TESTS)


def test_the_pages_are_made_from_the_fixes():
    written = {file.name: file.read_text("utf-8") for file in fix_pages.FOLDER.glob("*.md")}
    assert written == fix_pages.pages(), "run: python tests/fix_pages.py"


def test_the_index_links_to_every_page():
    pages = fix_pages.pages()
    index = pages.pop(fix_pages.INDEX)
    assert pages
    assert all(f"]({name})" in index for name in pages)
