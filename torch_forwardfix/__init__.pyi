from typing import Any

from ._version import __version__ as __version__
from .engine import activate as activate
from .fingerprint import RanksDiffer as RanksDiffer
from .fingerprint import check_ranks as check_ranks
from .fix import BugPresent as BugPresent
from .fix import Fix as Fix
from .fix import Outcome as Outcome
from .report import FixStatus as FixStatus
from .report import status as status

watcher: Any

def init() -> None: ...
