"""A line on the terminal about a training that goes on in other processes, from the file in which it notes its losses."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from bootstrap.journal import JOURNAL, read_lines
from bootstrap.sft import overwrite, progress_line

_EVERY_S = 2.0


@contextlib.contextmanager
def following(work: Path) -> Iterator[None]:
    """Shows, while something else is waited for, how far the trainings below a work folder are; only on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(_EVERY_S):
            if line := newest_line(work):
                overwrite(line)

    thread = threading.Thread(target=show, name="following", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        overwrite(f"{'':<62}\r")


def newest_line(work: Path) -> str:
    """Step, loss and time left of the training that noted something last, "" where none has twice.

    The time is that between its last two lines, for each step that is left.
    """
    journals = sorted(work.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime_ns)
    lines = [line for path in journals[-1:] for line in read_lines(path) if "loss" in line]
    if len(lines) < 2:
        return ""
    before, now = lines[-2:]
    each_s = (now["at_ms"] - before["at_ms"]) / 1000 / max(1, now["step"] - before["step"])
    return progress_line(now["step"], now["steps"], now["loss"], each_s * (now["steps"] - now["step"]))
