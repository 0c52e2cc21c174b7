"""What the gates of a round are told of a candidate upstream."""

from __future__ import annotations

from bootstrap.evaluation import GatePolicy, candidate_gates
from bootstrap.health import Health, Likelihoods, answer_shares
from bootstrap.rounds.upstream_stages import gated_health, upstream_evidence

GOOD, REFUSAL = "You have 30 days to return it.", "I cannot help with that."
NAMES = ("true", "polite")


def test_a_candidate_is_seen_by_criterion_refusal_and_length() -> None:
    verdicts = [dict.fromkeys(NAMES, True)] * 2, [dict.fromkeys(NAMES, True), {"true": False, "polite": True}]
    evidence = upstream_evidence(verdicts, ([GOOD, GOOD], [GOOD, REFUSAL]), health={}, seed=3)
    assert evidence.right == ([True, True], [True, False])
    assert evidence.criteria == {"true": ([True, True], [True, False]), "polite": ([True, True], [True, True])}
    assert evidence.refused == ([False, False], [False, True])
    assert evidence.lengths == ([len(GOOD)] * 2, [len(GOOD), len(REFUSAL)])
    assert (evidence.seed, evidence.scores) == (3, None)


def test_a_better_candidate_that_refuses_is_not_promoted() -> None:
    right, wrong = dict.fromkeys(NAMES, True), {"true": False, "polite": True}
    served, better = [right] * 300 + [wrong] * 300, [right] * 550 + [wrong] * 50
    answers = [GOOD] * 600, [GOOD] * 550 + [REFUSAL] * 50
    gates = candidate_gates(upstream_evidence((served, better), answers, health={}), GatePolicy(length_ratio=None))
    assert {gate.name: gate.decision for gate in gates if not gate.passed} == {"harmless prompts answered": "reject"}
    assert gates[0].passed


def test_only_what_was_measured_and_has_a_limit_is_gated() -> None:
    known = Likelihoods(pairs=9, chosen_fallen=0.3, edited=1.0, prefix=0.0, suffix=0.0, unrelated=0, drift=None)
    shares = answer_shares([GOOD, REFUSAL])
    found = gated_health(Health(likelihoods=known, before=shares, after=shares), GatePolicy())
    assert found == {"chosen_fallen": 0.3, "repetition": 0.0, "broken_off": 0.0}
    assert gated_health(Health(likelihoods=known), GatePolicy(health={"drift": 0.5})) == {}
