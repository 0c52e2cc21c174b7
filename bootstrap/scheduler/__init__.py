"""Rounds on a schedule: by cron and by data, one for each fire, whatever number of processes wait for it."""

from __future__ import annotations

from bootstrap.scheduler.clock import Clock, FakeClock, SystemClock
from bootstrap.scheduler.cron import Schedule
from bootstrap.scheduler.loop import Scheduler
from bootstrap.scheduler.rounds import FunctionRounds, RoundOutcome, Rounds

__all__ = ["Clock", "FakeClock", "FunctionRounds", "RoundOutcome", "Rounds", "Schedule", "Scheduler", "SystemClock"]
