"""The virtual environments of tests/venvs.py."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
sys.path.insert(0, TESTS)

from venvs import *  # noqa: E402, F403

sys.path.remove(TESTS)
