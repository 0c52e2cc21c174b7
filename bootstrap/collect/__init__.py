"""Collects corrections from a live chain without holding it up: memory or a log, and one thread that feeds the store."""

from bootstrap.collect.collector import Collector
from bootstrap.collect.counting import Counters

__all__ = ["Collector", "Counters"]
