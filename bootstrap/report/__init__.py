"""What came of rounds, as HTML pages that load nothing: one for each round, an index over them, and the demo's page.

    home/reports/index.html      all rounds, what is served, how much the Aligner still has to change
    home/reports/round-3.html    what happened in a round and why, before and after, examples, costs

Every text that comes from a model, a user or a ledger is escaped and, where it is long, cut.
"""

from __future__ import annotations

from bootstrap.report.demo_page import render, write_report
from bootstrap.report.index_page import render_index
from bootstrap.report.round_page import render_round
from bootstrap.report.writing import Written, write_reports

__all__ = ["Written", "render", "render_index", "render_round", "write_report", "write_reports"]
