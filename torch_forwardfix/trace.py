"""With ``TORCH_TRACE`` set, torch's structured log of a process tells the fixes; tlparse shows them in its report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from logging import LogRecord, getLogger
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Plan

# torch's own logger for it; without TORCH_TRACE it has no handler.
_LOGGER = "torch.__trace"


def announce(plan: Plan) -> None:
    """Have one artifact written when the first compile has ended, well or not; nothing where ``TORCH_TRACE`` is unset.

    By then the modules of that compile are loaded, so that the states are what became of the fixes. It is a filter that
    waits for the record which ends a compile: torch's own callbacks are forgotten at ``torch._dynamo.reset()``.
    """
    if not os.environ.get("TORCH_TRACE"):
        return
    told: list[bool] = []

    def tell(record: LogRecord) -> bool:
        metadata = getattr(record, "metadata", None)
        if not told and isinstance(metadata, Mapping) and "compilation_metrics" in metadata:
            told.append(True)
            # A fault of ours must not fail the user's compile.
            with suppress(Exception):
                _write(plan)
        return True

    getLogger(_LOGGER).addFilter(tell)


def _write(plan: Plan) -> None:
    from torch._logging import trace_structured

    from . import fingerprint
    from .engine import outcome_of

    taken = fingerprint.take(plan)
    states = {id: outcome_of(plan, id) for id in (*plan.fixes, *plan.decided)}
    payload = {
        "fingerprint": taken.digest,
        "versions": taken.versions,
        "in force": {id: states[id].state for id in taken.fixes},
        "not in force": {
            id: f"{outcome.state}: {outcome.reason}" for id, outcome in states.items() if id not in taken.fixes
        },
    }
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "torch_forwardfix", "encoding": "json"},
        payload_fn=lambda: json.dumps(payload, indent=1),
    )
