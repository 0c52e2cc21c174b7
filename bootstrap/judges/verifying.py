"""Verifiers for the Aligner's training, made of judges; and the check that none of them judges its own work.

An Aligner that learns from what it wrote itself learns nothing but its own habits. So whoever confirms a correction must
be somebody else than the Aligner, than the annotator who wrote what the Aligner learned from, and than the judge of the
gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction
from bootstrap.errors import JudgeError
from bootstrap.judges.feedback import GOOD, Opinions
from bootstrap.judges.preference import SECOND, PreferenceJudge
from bootstrap.judges.roles import Judge, Verifier, fully_right, judged, verified

if TYPE_CHECKING:
    from bootstrap.records import Split
    from bootstrap.store import CorrectionStore


class PreferenceVerifier:
    """Confirms a correction that a judge of preference likes better than the answer it corrects.

    A correction that changed nothing cannot be told apart from its answer, so a tie would confirm whatever the Aligner
    left alone. Such ones are confirmed where `right` says that the answer meets every criterion, and not without it.

    Args:
        judge: compares the answer with its correction, a `ChatModelJudge` in both orders.
        right: judges answers that were left as they are; None confirms none of them.

    Raises:
        JudgeError: when called, where a correction is by the very model that judges.
    """

    def __init__(self, judge: PreferenceJudge, *, right: Judge | None = None) -> None:
        self._judge, self._right = judge, right
        self.rests_on = (judge, right)

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        """For each correction whether it is fit to be learned from."""
        refuse_own_work(self, corrections)
        changed = [one for one in corrections if one.changed]
        unchanged = [one for one in corrections if not one.changed]
        preferences = self._judge.prefer(
            [one.exchange for one in changed], [one.exchange.answer for one in changed], [one.text for one in changed]
        )
        verdicts = (
            fully_right(judged(self._right, [one.exchange for one in unchanged])) if self._right and unchanged else None
        )
        better = iter([preference.score == SECOND for preference in preferences])
        left = iter(verdicts if verdicts is not None else [False] * len(unchanged))
        return [next(better if one.changed else left) for one in corrections]


class JudgeVerifier:
    """Confirms a text, changed or not, that meets every criterion of a judge of right and wrong.

    Args:
        judge: another one than the judge of the gates.

    Raises:
        JudgeError: when called, where a correction is by the very model that judges.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.rests_on = (judge,)

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        """For each correction whether it is fit to be learned from."""
        refuse_own_work(self, corrections)
        return fully_right(judged(self._judge, [replace(one.exchange, answer=one.text) for one in corrections]))


class FeedbackVerifier:
    """Confirms what people said is right: the text was written by a person, accepted in a review, or got a thumb up.

    Args:
        store: read once, now.
        split: of which split; None for all.
    """

    def __init__(self, store: CorrectionStore, split: Split | None = None) -> None:
        self._opinions = Opinions(store, split)

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        """For each correction whether it is fit to be learned from."""
        said = (self._opinions.of(one.exchange, one.text) for one in corrections)
        return [level is not None and level >= GOOD for level in said]


class any_of:  # noqa: N801  (reads as the function it is: any_of(feedback, judge))
    """Confirms what at least one verifier does; each is asked about what those before it did not confirm.

    Put the cheap ones first. Raises `ConfigurationError` where none is given.
    """

    def __init__(self, *verifiers: Verifier) -> None:
        self.rests_on = _some(verifiers)

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        """For each correction whether it is fit to be learned from."""
        return _in_turn(self.rests_on, corrections, until=True)


class all_of:  # noqa: N801  (as `any_of`)
    """Confirms what every verifier does; each is asked about what those before it confirmed.

    Put the cheap ones first. Raises `ConfigurationError` where none is given.
    """

    def __init__(self, *verifiers: Verifier) -> None:
        self.rests_on = _some(verifiers)

    def __call__(self, corrections: Sequence[Correction]) -> list[bool]:
        """For each correction whether it is fit to be learned from."""
        return _in_turn(self.rests_on, corrections, until=False)


def require_independent(
    *,
    judge: object = None,
    verifier: object = None,
    aligner: object = None,
    annotator: object = None,
) -> None:
    """Refuses roles of a round that are played by the same one; None where there is no such role.

    Two are the same where they are one object, one object is part of the other, or both name the same model as their
    `identity` (as an Aligner and a `ChatModelJudge` do: `name@version`). Only the Aligner and the annotator may be the
    same: a strong chat model that corrects until there is a trained Aligner.

    Raises:
        JudgeError: two roles are; the message says which, and why that would teach nothing.
    """
    roles = {"judge": judge, "verifier": verifier, "Aligner": aligner, "annotator": annotator}
    given = {name: set(_sources(role)) for name, role in roles.items() if role is not None}
    for one, other in combinations(given, 2):
        if {one, other} == {"Aligner", "annotator"}:
            continue
        if same := given[one] & given[other]:
            named = sorted(source for source in same if isinstance(source, str))
            raise JudgeError(_same(one, other, named[0] if named else ""))


def refuse_own_work(verifier: object, corrections: Sequence[Correction]) -> None:
    """Raises `JudgeError` where a correction was written by a model that the verifier rests on."""
    if own := {one.aligner for one in corrections} & {one for one in _sources(verifier) if isinstance(one, str)}:
        raise JudgeError(_same("verifier", "Aligner", sorted(own)[0]))


def _sources(role: object) -> Iterator[str | int]:
    """What a role rests on: the objects, by their numbers, and the models, by their names."""
    role = getattr(role, "__self__", role)  # of a method, the object it belongs to
    yield id(role)
    identity = getattr(role, "identity", None)
    if isinstance(identity, str) and identity:
        yield identity
    for part in getattr(role, "rests_on", ()):
        if part is not None:
            yield from _sources(part)


def _same(one: str, other: str, name: str) -> str:
    who = f" ({name})" if name else ""
    return (
        f"The {one} and the {other} are the same{who}. What it does wrong it would also call right, and a round could only "
        f"learn to please it. Use another model as {one}: ChatModelJudge(another_model), a RuleJudge, or what people said "
        "(FeedbackVerifier). Are they different models that go by the same name, tell them apart:\n"
        '  ChatModelJudge(model, name="my-judge")'
    )


def _some(verifiers: tuple[Verifier, ...]) -> tuple[Verifier, ...]:
    if not verifiers:
        raise ConfigurationError("any_of and all_of need a verifier:  any_of(FeedbackVerifier(store), verify)")
    return verifiers


def _in_turn(verifiers: Sequence[Verifier], corrections: Sequence[Correction], *, until: bool) -> list[bool]:
    """Asks one verifier after the other about what none before it has settled, which is what a verdict `until` does."""
    verdicts = [not until] * len(corrections)
    for verifier in verifiers:
        open_ = [at for at, verdict in enumerate(verdicts) if verdict is not until]
        if open_:
            said = verified(verifier, [corrections[at] for at in open_])
            for at, verdict in zip(open_, said, strict=True):
                verdicts[at] = verdict
    return verdicts
