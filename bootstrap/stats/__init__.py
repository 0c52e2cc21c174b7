"""What was collected, as figures and as a page."""

from __future__ import annotations

from bootstrap.stats.figures import Statistics, statistics

__all__ = ["Statistics", "statistics"]
