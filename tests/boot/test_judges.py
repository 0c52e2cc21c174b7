"""Judges of rules and of people, their agreement, and verifiers that never judge their own work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Exchange, Turn
from bootstrap.cli import main
from bootstrap.errors import JudgeError
from bootstrap.judges import (
    FeedbackJudge,
    FeedbackVerifier,
    JudgeVerifier,
    Preference,
    PreferenceVerifier,
    RuleJudge,
    agreement,
    agreement_by_criterion,
    all_of,
    annotated,
    any_of,
    human_labels,
    human_preferences,
    is_json,
    judged,
    length,
    must_contain,
    must_not_contain,
    preference_agreement,
    require_independent,
    verified,
)
from bootstrap.judges.verifying import refuse_own_work
from bootstrap.records import Feedback
from bootstrap.store import CorrectionStore

ASKED = Exchange.of("Where is my parcel?", "")
RULES = RuleJudge(
    {"polite": must_contain("please"), "kind": must_not_contain("stupid", "SHUT UP"), "short": length(at_most=20)}
)
Make = Callable[..., Correction]


def answers(*texts: str) -> list[Exchange]:
    return [Exchange.of("Where is my parcel?", text) for text in texts]


# --- rules ------------------------------------------------------------------------------------------------------


def test_each_rule_is_a_criterion() -> None:
    assert RULES(answers("Please wait.", "Shut up, stupid, and wait for it.", " ")) == [
        {"polite": True, "kind": True, "short": True},
        {"polite": False, "kind": False, "short": False},
        {"polite": False, "kind": True, "short": False},
    ]
    assert [is_json(one) for one in answers('{"a": 1}', "```json\n[1]\n```", "{a}")] == [True, True, False]


def test_more_criteria_win_and_as_many_are_a_tie() -> None:
    said = RULES.prefer([ASKED] * 3, ["Please wait.", "Wait.", "Please, stupid."], ["Wait.", "Please wait.", "Wait."])
    assert [one.score for one in said] == [0.0, 1.0, 0.5]
    assert said[2].reason == "only the first meets polite; only the second meets kind"


TEXTS = st.text(alphabet="please stupid\ud83d", max_size=30)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_answers_that_change_places_mirror_the_score(pairs: list[tuple[str, str]]) -> None:
    prompts, one, other = [ASKED] * len(pairs), [a for a, _ in pairs], [b for _, b in pairs]
    forward, backward = RULES.prefer(prompts, one, other), RULES.prefer(prompts, other, one)
    assert [there.score + back.score for there, back in zip(forward, backward, strict=True)] == [1.0] * len(pairs)


def test_a_rule_that_fails_is_named() -> None:
    with pytest.raises(JudgeError, match=r"The rule 'old' failed: ZeroDivisionError"):
        RuleJudge({"old": lambda exchange: bool(1 / 0)})([ASKED])
    with pytest.raises(ConfigurationError, match="needs a rule"):
        RuleJudge({})
    with pytest.raises(ValueError, match="as many answers"):
        RULES.prefer([ASKED], [], ["a"])


# --- agreement --------------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    # 20 times both yes, 15 both no, 5 and 10 only one of them: p = 0.7, e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4.
    judge = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    people = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(judge, people)
    assert (found.n, found.agreed, found.share) == (50, 35, 0.7)
    assert found.kappa == pytest.approx(0.4)
    # Wilson's, with z = 1.96: the centre is 0.738416 / 1.076832, the half width 1.96 * sqrt(0.0042 + 0.00038416) / 1.076832.
    assert (found.low, found.high) == (pytest.approx(0.562494, abs=1e-6), pytest.approx(0.808966, abs=1e-6))
    assert agreement([True] * 9, [True] * 9).kappa is None  # no case could tell whether it looks
    assert agreement([], []).as_dict() == {
        "n": 0, "agreed": 0, "share": None, "low": 0.0, "high": 1.0, "kappa": None,
    }  # fmt: skip


def test_ties_agree_with_ties_alone() -> None:
    found = preference_agreement([1.0, 0.5, 0.0, 0.5, 1.0], [1.0, 1.0, 1.0, 0.5, 0.5])
    assert (found.strict.agreed, found.strict.n) == (2, 5)
    assert (found.decided.agreed, found.decided.n) == (1, 2)
    assert (found.judge_ties, found.people_ties) == (2, 2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"))))
def test_agreement_is_the_same_from_both_sides_and_kappa_is_at_most_1(said: list[tuple[str, str]]) -> None:
    one, other = [a for a, _ in said], [b for _, b in said]
    found = agreement(one, other)
    assert found == agreement(other, one)
    assert found.kappa is None or found.kappa <= 1
    assert agreement(one, one).kappa in (None, 1.0)


def test_criteria_stand_beside_the_whole_verdict() -> None:
    verdicts = [{"polite": True, "right": True}, {"polite": True, "right": False}, {"polite": False, "right": True}]
    found = agreement_by_criterion(verdicts, [True, False, False])
    assert {name: row.agreed for name, row in found.items()} == {"fully right": 3, "polite": 2, "right": 2}


# --- people -----------------------------------------------------------------------------------------------------


@pytest.fixture
def said(store: CorrectionStore, make_correction: Make) -> CorrectionStore:
    """Seven corrections of "bad" to "good", each of another question, and what people said of them."""
    made = [make_correction(question=f"Question {number}?") for number in range(6)]
    made.append(make_correction(question="Question 6?", text="bad"))
    store.append(made)
    ids = [one.id for one in made]
    store.add_feedback(
        [
            Feedback(kind="thumb", value=True, correction_id=ids[0]),
            Feedback(kind="thumb", value=False, correction_id=ids[1]),
            Feedback(kind="thumb", value=True, correction_id=ids[2], at_ms=2),
            Feedback(kind="edit", value="best", correction_id=ids[2], at_ms=1),
            Feedback(kind="review", value=True, correction_id=ids[3]),
            Feedback(kind="review", value=False, correction_id=ids[4]),
            Feedback(kind="comment", value="hm", correction_id=ids[5]),
            Feedback(kind="edit", value="bad", correction_id=ids[6]),  # a person says that it was right
        ]
    )
    return store


def asked(number: int) -> Exchange:
    return Exchange.of(f"Question {number}?", "something else")


def test_edits_outrank_thumbs_and_where_nothing_was_said_it_is_a_tie(said: CorrectionStore) -> None:
    judge = FeedbackJudge(said)
    rows = [(2, "good", "best", 1.0), (2, "best", "bad", 0.0), (2, "good", "bad", 0.5), (3, "bad", "good", 1.0)]
    rows += [(0, "bad", "good", 0.5), (5, "bad", "good", 0.5), (2, "best", "unheard of", 0.5), (9, "good", "best", 0.5)]
    found = judge.prefer([asked(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    assert [one.score for one in found] == [row[3] for row in rows]
    assert found[0].reason == "people call the first bad, a person wrote the second"
    # What was right with other passages is another question.
    other = Exchange(turns=asked(2).turns, answer="", context=("a passage",))
    assert judge.prefer([other], ["good"], ["best"])[0].score == 0.5
    # Case and white space of a prompt make no difference, as for the splits.
    shouted = Exchange(turns=(Turn(role="user", text="QUESTION  2?"),), answer="")
    assert judge.prefer([shouted], ["good"], ["best"])[0].score == 1.0


def test_of_one_text_decisions_outrank_thumbs_and_then_the_newest_counts(
    store: CorrectionStore, make_correction: Make
) -> None:
    made = [make_correction() for _ in range(3)]  # three times the same question and the same texts
    store.append(made)
    said = ((0, "review", True, 5), (1, "thumb", False, 9), (2, "review", False, 3))
    store.add_feedback(Feedback(kind=k, value=v, correction_id=made[n].id, at_ms=at) for n, k, v, at in said)  # type: ignore[arg-type]
    assert FeedbackVerifier(store)(made[:1]) == [True]


def test_what_people_said_as_labels_and_as_preferences(said: CorrectionStore) -> None:
    labels = human_labels(said)
    assert [(one.exchange.question[-2], one.right, one.said_by) for one in labels] == [
        ("0", True, "thumb"),
        ("1", False, "thumb"),
        ("2", False, "edit"),
        ("3", True, "review"),
        ("4", False, "review"),
        ("6", True, "edit"),
    ]
    assert {one.exchange.answer for one in labels} == {"good", "bad"}
    pairs = human_preferences(said)
    better = [(one.first, one.second)[int(one.score)] for one in pairs]
    assert [(one.prompt.question[-2], text) for one, text in zip(pairs, better, strict=True)] == [
        ("2", "best"),
        ("3", "good"),
    ]


def test_who_always_says_the_second_agrees_with_half(store: CorrectionStore, make_correction: Make) -> None:
    made = [make_correction(question=f"{number}") for number in range(200)]
    store.append(made)
    store.add_feedback(Feedback(kind="review", value=True, correction_id=one.id) for one in made)
    scores = [one.score for one in human_preferences(store)]
    assert 70 < sum(scores) < 130
    assert preference_agreement([1.0] * 200, scores).strict.kappa == 0.0


def test_people_verify(said: CorrectionStore, make_correction: Make) -> None:
    verify = FeedbackVerifier(said)
    rows = [(0, "good"), (1, "good"), (2, "good"), (2, "best"), (3, "good"), (4, "good"), (5, "good"), (6, "bad")]
    corrections = [make_correction(question=f"Question {number}?", text=text) for number, text in rows]
    assert verify(corrections) == [True, False, False, True, True, False, False, True]


# --- verifying --------------------------------------------------------------------------------------------------


class Longest:
    """Prefers the longer answer; goes by a name."""

    identity = "longest@1"

    def prefer(self, prompts: Any, first: Any, second: Any) -> list[Preference]:
        return [
            Preference(score=0.5 if len(a) == len(b) else float(len(b) > len(a)))
            for a, b in zip(first, second, strict=True)
        ]


def test_a_correction_that_is_liked_better_is_confirmed_and_one_left_alone_needs_more(make_correction: Make) -> None:
    made = [make_correction(answer="ab", text=text) for text in ("ab", "abc", "xy", "a")]
    assert PreferenceVerifier(Longest())(made) == [False, True, False, False]
    right = RuleJudge({"ab": must_contain("ab")})
    assert PreferenceVerifier(Longest(), right=right)(made) == [True, True, False, False]
    assert PreferenceVerifier(Longest(), right=right)([]) == []
    assert JudgeVerifier(right)(made) == [True, True, False, False]


def test_verifiers_together_ask_only_about_what_is_open(make_correction: Make) -> None:
    made = [make_correction(text=text) for text in ("a", "ab", "abc", "b")]
    seen: list[list[str]] = []

    def holding(letter: str) -> Callable[[Any], list[bool]]:
        def verify(corrections: Any) -> list[bool]:
            seen.append([one.text for one in corrections])
            return [letter in one.text for one in corrections]

        return verify

    assert any_of(holding("b"), holding("a"))(made) == [True, True, True, True]
    assert all_of(holding("a"), holding("b"), holding("c"))(made) == [False, False, True, False]
    everything = ["a", "ab", "abc", "b"]
    assert seen == [everything, ["a"], everything, ["a", "ab", "abc"], ["ab", "abc"]]
    with pytest.raises(ConfigurationError, match="need a verifier"):
        any_of()


def test_nobody_judges_its_own_work(make_correction: Make) -> None:
    judge, aligner = Longest(), Aligner.scripted(lambda exchange: exchange.answer)
    verifier = any_of(lambda corrections: [], PreferenceVerifier(judge))
    with pytest.raises(JudgeError, match=r"judge and the verifier are the same \(longest@1\)"):
        require_independent(judge=Longest(), verifier=verifier)
    judge.identity = "scripted@1"
    with pytest.raises(JudgeError, match=r"The verifier and the Aligner are the same \(scripted@1\)"):
        require_independent(judge=RULES, verifier=verifier, aligner=aligner)
    with pytest.raises(JudgeError, match="judge and the annotator are the same"):
        require_independent(judge=RULES.prefer, annotator=RULES)
    require_independent(judge=RULES, verifier=verifier, aligner=Longest(), annotator=Longest())
    own = Aligner.scripted(lambda exchange: "longer than that").correct(answers("short"))
    with pytest.raises(JudgeError, match="another model as verifier"):
        PreferenceVerifier(judge)(own)
    with pytest.raises(JudgeError):
        refuse_own_work(verifier, own)
    assert PreferenceVerifier(Longest())(own) == [True]


# --- the command and the page -----------------------------------------------------------------------------------


def test_eval_judge(
    said: CorrectionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "desk_of_judges.py").write_text(
        "from bootstrap.judges import RuleJudge, length, must_contain\n"
        "judge = RuleJudge({'good': must_contain('good'), 'short': length(at_most=4)})\n"
        "def make():\n    return judge\n",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = ["eval", "judge", "--store", str(said.path), "--judge", "desk_of_judges:judge"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Right are thumbs up, the accepted one and "bad" as it was; the rule likes the five that say "good".
    assert (found["right"]["fully right"]["agreed"], found["right"]["fully right"]["n"]) == (2, 6)
    assert (found["preference"]["strict"]["agreed"], found["preference"]["judge_ties"]) == (1, 0)
    assert main([*command, "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "fully right" in shown
    assert "0 of 1" in shown
    assert main([*command[:-1], "math:pi"]) == 1
    assert "is float and no judge" in capsys.readouterr().err
    assert main([*command[:-1], "builtins:len"]) == 1
    assert "returned int and not a list" in capsys.readouterr().err
    CorrectionStore(tmp_path / "nobody.db").close()
    assert main(["eval", "judge", "--store", "nobody.db", "--judge", "desk_of_judges:judge"]) == 1
    assert "aligner-bootstrap review --store nobody.db" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "judge", "--help"])
    assert "example:\n  aligner-bootstrap eval judge" in capsys.readouterr().out


async def _async_judge(exchanges: object) -> list[dict[str, bool]]:
    return [{"right": True}]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, "returned NoneType, and must return a list"),
        ("yes", "returned str, and must return a list"),
        ([{"right": True}], "returned 1 entries for 2 answers"),
        ([True, True], r"returned bool True, and must give an object \{criterion: met\}"),
        ([{}, {}], r"with the keys \(none\)"),
        ([{"right": True}, {"kind": True}], "with the keys kind, .* the same criteria"),
        ([{"right": 0.7}, {"right": 0.2}], "returned float 0.7 for right, and must give True or False"),
        ([{"right": "no"}, {"right": "no"}], "returned str for right"),
        ([{"right": np.array([True, False])}] * 2, "returned ndarray for right"),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else "",
)
def test_what_no_judge_can_say_is_refused_and_never_counted_as_right(said: Any, told: str) -> None:
    exchanges = [Exchange.of("Why?", "secret one"), Exchange.of("When?", "secret two")]
    with pytest.raises(JudgeError, match=told) as caught:
        judged(lambda asked: said, exchanges)
    assert "secret" not in str(caught.value)


def test_an_async_judge_is_told_apart_and_a_generator_and_numbers_of_numpy_are_verdicts() -> None:
    exchange = Exchange.of("Why?", "So.")
    with pytest.raises(JudgeError, match="The judge is async"):
        judged(_async_judge, [exchange])  # type: ignore[arg-type]
    said: Any = lambda asked: ({"right": np.bool_(True), "kind": 0} for _ in asked)  # noqa: E731 - it is of no Judge's type
    [verdict] = judged(said, [exchange])
    assert verdict == {"right": True, "kind": False}
    assert [type(met) for met in verdict.values()] == [bool, bool]


def test_verifiers_and_annotators_are_looked_at_alike() -> None:
    exchange = Exchange.of("Why?", "secret")
    correction = Correction(exchange=exchange, text="So.", outcome="corrected")
    with pytest.raises(JudgeError, match=r"verifier returned float 0\.3, and must give True or False"):
        verified(lambda asked: [0.3], [correction])  # type: ignore[list-item]
    with pytest.raises(JudgeError, match="verifier returned 0 entries for 1 corrections"):
        verified(lambda asked: [], [correction])
    with pytest.raises(JudgeError, match=r"annotator returned str, and must give Annotation\(") as caught:
        annotated(lambda asked: [one.answer for one in asked], [exchange])  # type: ignore[misc]
    assert "secret" not in str(caught.value)
