"""Who says what is right and which answer is better: rules, reward models, chat models, and people.

A judge decides what counts as right; gates and figures rest on it. A verifier confirms single corrections before the
Aligner is trained on them. Models are imported when they are first asked.
"""

from __future__ import annotations

from bootstrap.judges.agreement import (
    Agreement,
    PreferenceAgreement,
    agreement,
    agreement_by_criterion,
    preference_agreement,
)
from bootstrap.judges.asking import Counts
from bootstrap.judges.chat import ChatModelJudge
from bootstrap.judges.feedback import (
    FeedbackJudge,
    HumanLabel,
    HumanPreference,
    human_labels,
    human_preferences,
)
from bootstrap.judges.preference import Preference, PreferenceJudge
from bootstrap.judges.reward import RewardModelJudge
from bootstrap.judges.roles import (
    Annotation,
    Annotator,
    Judge,
    Verifier,
    annotated,
    fully_right,
    judged,
    load_callable,
    verified,
)
from bootstrap.judges.rules import RuleJudge, is_json, length, must_contain, must_not_contain
from bootstrap.judges.verifying import (
    FeedbackVerifier,
    JudgeVerifier,
    PreferenceVerifier,
    all_of,
    any_of,
    require_independent,
)

__all__ = [
    "Agreement",
    "Annotation",
    "Annotator",
    "ChatModelJudge",
    "Counts",
    "FeedbackJudge",
    "FeedbackVerifier",
    "HumanLabel",
    "HumanPreference",
    "Judge",
    "JudgeVerifier",
    "Preference",
    "PreferenceAgreement",
    "PreferenceJudge",
    "PreferenceVerifier",
    "RewardModelJudge",
    "RuleJudge",
    "Verifier",
    "agreement",
    "agreement_by_criterion",
    "all_of",
    "annotated",
    "any_of",
    "fully_right",
    "human_labels",
    "human_preferences",
    "is_json",
    "judged",
    "length",
    "load_callable",
    "must_contain",
    "must_not_contain",
    "preference_agreement",
    "require_independent",
    "verified",
]
