"""The statistics of the gates and what they decide: promote, hold or reject. Pure functions.

`intervals` has shares and paired changes, `sequential` the test that survives peeking, `lengths` the length-controlled win
rate, `online` what a test may cost over many rounds; `gates` decides on each figure and `policy` on all of them.
"""

from __future__ import annotations

from bootstrap.evaluation.gates import (
    non_inferiority_gate,
    null_gates,
    over_editing_gate,
    over_refusal_gate,
    share_gate,
    superiority_gate,
    win_rate_gate,
)
from bootstrap.evaluation.intervals import PairedChange, paired_interval, wilson
from bootstrap.evaluation.lengths import ControlledRate, controlled_win_rate
from bootstrap.evaluation.limits import length_ratio_gate, limit_gate
from bootstrap.evaluation.online import level
from bootstrap.evaluation.policy import Decision, Evidence, GatePolicy, Preferences, candidate_gates, decide
from bootstrap.evaluation.results import GateResult, Verdict, explain
from bootstrap.evaluation.sequential import (
    e_values,
    lower_bound,
    scores_in_random_order,
    sequential_gate,
    verdict_scores,
)

__all__ = [
    "ControlledRate",
    "Decision",
    "Evidence",
    "GatePolicy",
    "GateResult",
    "PairedChange",
    "Preferences",
    "Verdict",
    "candidate_gates",
    "controlled_win_rate",
    "decide",
    "e_values",
    "explain",
    "length_ratio_gate",
    "level",
    "limit_gate",
    "lower_bound",
    "non_inferiority_gate",
    "null_gates",
    "over_editing_gate",
    "over_refusal_gate",
    "paired_interval",
    "scores_in_random_order",
    "sequential_gate",
    "share_gate",
    "superiority_gate",
    "verdict_scores",
    "wilson",
    "win_rate_gate",
]
