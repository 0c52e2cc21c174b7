"""Several Aligners as one, each for a criterion of its own: an answer goes to the one whose criterion it fails worst.

After "Aligners: Decoupling LLMs and Alignment" (Ngweta et al. 2024, arXiv 2403.04224), which sends whole batches through in the
order of their mean scores; here every answer has an order of its own, whatever stands beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from aligner_chain.engines.base import Generation, Request, Ticket
from aligner_chain.engines.text import TextEngine, exchange_of
from aligner_chain.errors import CapabilityError, ConfigurationError
from aligner_chain.exchange import Correction, Exchange, Usage
from aligner_chain.inspectors import Inspector, scored, worst


class Member(Protocol):
    """An Aligner, as far as a squad knows it."""

    def correct(self, exchanges: Sequence[Exchange]) -> list[Correction]: ...


@dataclass(slots=True)
class _Answer:
    """One answer on its way through the stages; `left` are the criteria that it fails and that were not tried yet."""

    exchange: Exchange
    scores: Mapping[str, float]
    left: dict[str, float]
    tried: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    error: Exception | None = None


class SquadEngine(TextEngine):
    """Has each answer corrected by the Aligner of the criterion it fails worst, and then by the next, in `stages` at most.

    Args:
        members: The Aligner for each criterion.
        inspector: Scores every criterion of the members, and may score others.
        thresholds: For each of these criteria the score that an answer needs more than to pass.
        stages: Aligners that one answer sees at most. What a stage wrote is inspected again, and one that passes stops.

    Raises:
        ConfigurationError: A criterion without a threshold or with one that is not between 0 and 1, or no stage or member at all.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        inspector: Inspector,
        thresholds: Mapping[str, float],
        stages: int = 1,
    ) -> None:
        if missing := sorted(members.keys() - thresholds.keys()):
            raise ConfigurationError(
                f"There is no threshold for {', '.join(missing)}, so nobody could say which answers fail. Measure it with "
                "aligner-chain calibrate, or name one: thresholds={criterion: score}."
            )
        if wrong := {name: value for name, value in thresholds.items() if not 0 <= value <= 1}:
            raise ConfigurationError(f"Scores, and so thresholds, go from 0 to 1; given: {wrong}.")
        if not members or stages < 1:
            raise ConfigurationError(f"A squad needs members and a stage; it has {len(members)} and {stages}.")
        super().__init__(workers=4)
        self._members, self._inspector, self._thresholds, self._stages = members, inspector, thresholds, stages

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """As that of every engine of texts; also raises `CapabilityError` for criteria, which its members have of their own."""
        if any(request.criteria for request in requests):
            raise CapabilityError(
                f"A squad judges by the criteria of its members ({', '.join(self._members)}) and takes no others. Leave "
                "criteria= out, or give them to a member: member.under(Policy(criteria=[...]))."
            )
        return super().submit(requests)

    def _answered(self, requests: Sequence[Request]) -> Iterable[Generation | Exception]:
        exchanges = [exchange_of(request) for request in requests]
        answers = [_Answer(one, scores, self._failed(scores)) for one, scores in self._inspected(exchanges)]
        for stage in range(self._stages):
            waiting = [answer for answer in answers if answer.left and answer.error is None]
            self._correct(waiting)
            if stage + 1 < self._stages:
                self._look_again([answer for answer in waiting if answer.left and answer.error is None])
        pairs = zip(requests, exchanges, answers, strict=True)
        return [one.error or _generation(request, given, one) for request, given, one in pairs]

    def _inspected(self, exchanges: Sequence[Exchange]) -> Iterable[tuple[Exchange, Mapping[str, float]]]:
        return zip(exchanges, scored([self._inspector], exchanges), strict=True)

    def _failed(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The criteria below their thresholds. One that was not scored is not failed: nobody knows."""
        known = {name: scores[name] for name in self._members if name in scores}
        return {name: score for name, score in known.items() if score <= self._thresholds[name]}

    def _correct(self, answers: Sequence[_Answer]) -> None:
        """One call of each member that has anything to do."""
        groups: dict[str, list[_Answer]] = defaultdict(list)
        for answer in answers:
            groups[worst(answer.left)[0]].append(answer)
        for criterion, group in groups.items():
            try:
                corrections = self._members[criterion].correct([one.exchange for one in group])
            except Exception as error:  # noqa: BLE001  (belongs to the answers of this member alone)
                for one in group:
                    one.error = error
                continue
            for one, correction in zip(group, corrections, strict=True):
                _take(one, criterion, correction)

    def _look_again(self, answers: Sequence[_Answer]) -> None:
        for answer, (_, scores) in zip(answers, self._inspected([one.exchange for one in answers]), strict=True):
            failed = self._failed(scores)
            answer.left = {name: score for name, score in failed.items() if name not in answer.tried}


def _take(answer: _Answer, criterion: str, correction: Correction) -> None:
    answer.error = correction.error
    answer.usage = _sum(answer.usage, correction.usage)
    answer.tried.append(criterion)
    del answer.left[criterion]
    if correction.changed:
        answer.exchange = replace(answer.exchange, answer=correction.text)


def _generation(request: Request, given: Exchange, answer: _Answer) -> Generation:
    text = answer.exchange.answer
    return Generation(
        key=request.key,
        text=text,
        approved=text == given.answer,
        criteria=tuple(answer.tried) if text != given.answer else (),
        scores=answer.scores,
        usage=answer.usage,
    )


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        new_tokens=one.new_tokens + other.new_tokens,
        forwards=one.forwards + other.forwards,
        accepted_draft_tokens=one.accepted_draft_tokens + other.accepted_draft_tokens,
        latency_s=one.latency_s + other.latency_s,
    )
