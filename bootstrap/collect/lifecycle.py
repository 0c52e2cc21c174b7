"""What collectors do when their process forks, exits, or is told to end by SIGTERM."""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import signal
import threading
import time
import weakref

from bootstrap.collect.writer import Writer

_LOG = logging.getLogger(__name__)

_EXIT_TIMEOUT_S = 10.0

_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


def watch(writer: Writer) -> None:
    """From now on this writer is flushed at the exit, and at rest while the process forks."""
    _WRITERS.add(writer)


def flush_on_sigterm() -> None:
    """Has SIGTERM flush all collectors for at most 10 s before it ends the process, as it does by default.

    A handler that the application has set stays as it is: it decides how the process ends.

    Raises:
        ValueError: not called in the main thread, the only one that may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "flush_on_sigterm=True sets a signal handler, which Python allows in the main thread only. "
            "Make the Collector there, or leave it out and call collector.close() where your application ends."
        )
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: object) -> None:
    # The interrupted code may hold the very lock that a flush needs, so another thread has to flush; not one of
    # `threading`, whose start takes locks too. A second signal ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _thread.start_new_thread(_flush_and_end, ())


def _flush_and_end() -> None:
    try:
        _flush()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _flush() -> None:
    deadline = time.monotonic() + _EXIT_TIMEOUT_S
    for writer in list(_WRITERS):
        writer.flush(max(0.0, deadline - time.monotonic()))
        if lost := writer.memory.held:
            _LOG.warning("%d corrections could not be written before the exit and are lost", lost)


def _at_exit() -> None:
    for writer in list(_WRITERS):
        writer.stop()
    _flush()


def _before_fork() -> None:
    for writer in list(_WRITERS):
        writer.before_fork()


def _after_fork_in_parent() -> None:
    for writer in list(_WRITERS):
        writer.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for writer in list(_WRITERS):
        writer.after_fork_in_child()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
