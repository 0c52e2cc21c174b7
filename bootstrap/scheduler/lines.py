"""The scheduler's log: a line of JSON for each thing that happens."""

from __future__ import annotations

import json
import logging
import sys
import traceback

_LOG = logging.getLogger(__name__)


def log_event(level: int, event: str, **fields: object) -> None:
    """Logs one line; that of an error which is being handled holds its traceback."""
    handled = level >= logging.ERROR and sys.exc_info()[0] is not None
    told = {"traceback": traceback.format_exc()} if handled else {}
    _LOG.log(level, "%s", json.dumps({"event": event, **fields, **told}, ensure_ascii=False))
