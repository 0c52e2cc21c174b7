"""Correctors held against each other as the Aligner's paper does it, in both orders and with ties.

    from bootstrap.correctors import Prompt, evaluate

    found = evaluate({"ours": aligner}, prompts, {"helpful": judge, "harmless": other_judge}, lexicon=words)
    found.as_json()

Every answer goes through every corrector and through those that understand nothing; judges say which of answer and
correction is better; beside that stands what `aligner_chain.audit` measures. `prompts` knows the paper's sets of prompts,
`answers` has an upstream answer them, and `aligner-bootstrap eval correctors` does it all from a shell.
"""

from __future__ import annotations

from bootstrap.correctors.evaluating import CRITERIA, Evaluation, OverRefusal, Prompt, evaluate
from bootstrap.correctors.nulls import DELETE, QUESTION_ONLY
from bootstrap.correctors.prompts import PROMPT_SETS, Asked, PromptSet, load
from bootstrap.correctors.rates import Net, WinRate

__all__ = [
    "CRITERIA",
    "DELETE",
    "PROMPT_SETS",
    "QUESTION_ONLY",
    "Asked",
    "Evaluation",
    "Net",
    "OverRefusal",
    "Prompt",
    "PromptSet",
    "WinRate",
    "evaluate",
    "load",
]
