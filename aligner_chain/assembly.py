"""One answer's way through an Aligner: what its engine is asked, and what the output means. Nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Capabilities, Generation, Request, Ticket
from aligner_chain.errors import (
    AlignerError,
    CapabilityError,
    CheckpointError,
    ConfigurationError,
    CorrectionError,
    CorrectionTimeoutError,
    EngineError,
    IncompleteCorrectionError,
    PromptNotFoundError,
)
from aligner_chain.exchange import Correction, Exchange, TokenScore, edits_between, uuid7
from aligner_chain.templates import CorrectionTemplate, Parsed, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

CERTAIN = 1e4
"""Nats by which a verdict is pushed that is not to be asked for; no model is that sure of the other one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one call asks of every answer. One whose score is not above `threshold` is corrected; None: the engine simply decodes."""

    criteria: tuple[str, ...] = ()
    adapter: str | None = None
    threshold: float | None = None
    deadline_s: float | None = None
    stream: bool = False
    score_only: bool = False


@dataclass(slots=True)
class Job:
    """One exchange on its way: settled without the engine, or a request with its ticket."""

    exchange: Exchange
    request: Request | None = None
    rendered: Rendered | None = None
    settled: Correction | None = None
    ticket: Ticket | None = None
    threshold: float | None = None


class Assembly:
    """Makes requests of exchanges and corrections of generations, for one Aligner. `score` names what it says of an answer.

    That is "keep", the probability of the verdict KEEP; for an Aligner without a verdict "copy", the probability of the
    token of the answer that the Aligner is least likely to leave; or "" where the engine tells neither.
    """

    def __init__(
        self,
        metadata: AlignerMetadata,
        capabilities: Capabilities,
        template: CorrectionTemplate | None,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._metadata, self._can = metadata, capabilities
        self._template, self._tokenizer = template, tokenizer
        verdict = template is not None and template.verdict and capabilities.bias
        self.score = "keep" if verdict else "copy" if template is not None and capabilities.score_draft else ""
        self._threshold = self._own_threshold()

    def threshold(self, strength: float | None) -> float | None:
        """The score that an answer needs more than to stay as it is. Raises `CapabilityError` and `ConfigurationError`."""
        if strength is None:
            return self._threshold
        if not 0 <= strength <= 1:
            raise ConfigurationError(
                f"strength={strength}: it is the score below which an answer is corrected, from 0 (none is) to 1 (all are)."
            )
        if not self.score and 0 < strength < 1:
            raise CapabilityError(
                f"strength={strength} needs a score of each answer, which {self._metadata.identity} "
                f"({self._metadata.template}) does not give. Ways out: strength 0 or 1, or none; a local Aligner; or "
                "inspectors in front of it: Policy(before=...)."
            )
        return strength

    def job(self, exchange: Exchange, asked: Asked) -> Job:
        """What is to be done with an exchange. What is wrong with it alone settles it."""
        if not exchange.answer.strip():
            return Job(exchange, settled=self.correction(exchange, "skipped", reason="the answer is empty"))
        if not exchange.question.strip():
            return Job(exchange, settled=self.failed(exchange, _no_question()))
        if asked.threshold == 0 and not asked.score_only:
            return Job(
                exchange, settled=self.correction(exchange, "approved", reason="nothing is corrected at strength 0")
            )
        request = Request(
            key=str(uuid7()),
            exchange=exchange,
            criteria=asked.criteria,
            adapter=asked.adapter,
            deadline_s=asked.deadline_s,
            stream=asked.stream,
        )
        if self._template is None or self._tokenizer is None:
            return Job(exchange, request, threshold=asked.threshold)
        try:
            rendered = self._template.render(
                exchange, self._tokenizer, window=self._can.window, criteria=request.criteria
            )
        except CorrectionError as error:
            return Job(exchange, settled=self.failed(exchange, error))
        return Job(exchange, self._with_tokens(request, rendered, asked), rendered, threshold=asked.threshold)

    def reader(self, job: Job) -> Callable[[Sequence[int]], str]:
        """Gives the text that is certain of an output so far."""
        if job.rendered is None or self._template is None or self._tokenizer is None:
            return lambda ids: ""
        return self._template.reader(self._tokenizer, job.rendered)

    def finish(self, job: Job) -> Correction:
        """The correction of a job whose ticket nobody waits for any more."""
        if job.settled is not None:
            return job.settled
        generation = _generation(job.ticket)
        if isinstance(generation, Exception):
            return self.failed(job.exchange, generation)
        try:
            return self._assembled(job, generation, self._parsed(job, generation))
        except CorrectionError as error:
            return replace(self.failed(job.exchange, error), **self._measured(job, generation))

    def scores(self, job: Job) -> Mapping[str, float]:
        """What a job with `score_only` found out; nothing where the answer could not be scored."""
        generation = _generation(job.ticket)
        return {} if isinstance(generation, Exception) else self._scores(job, generation)

    def failed(self, exchange: Exchange, error: Exception) -> Correction:
        return self.correction(exchange, "failed", reason=str(error).partition(". ")[0], error=error)

    def correction(self, exchange: Exchange, outcome: Any, **rest: Any) -> Correction:
        """A correction that leaves the answer as it is."""
        return Correction(
            exchange=exchange,
            text=exchange.answer,
            outcome=outcome,
            aligner=self._metadata.identity,
            template=self._metadata.template,
            **rest,
        )

    def _own_threshold(self) -> float | None:
        calibrated = self._metadata.threshold_of(self.score)
        if calibrated is not None:
            return calibrated
        threshold = self._metadata.thresholds.get(self.score, 0.5 if self.score == "keep" else None)
        if threshold is not None and not 0 < threshold < 1:
            raise CheckpointError(
                f'The threshold "{self.score}" of {self._metadata.identity} is {threshold}; it must be between 0 and 1. '
                "Mend it in aligner.json, or take it out there."
            )
        return threshold

    def _with_tokens(self, request: Request, rendered: Rendered, asked: Asked) -> Request:
        verdict, scored = self.score == "keep", self.score == "copy" and asked.threshold not in (None, 1.0)
        made = replace(
            request,
            prompt=rendered.prompt,
            max_new=rendered.max_new,
            draft=rendered.draft,
            choices=rendered.choices,
            stop_ids=rendered.stop_ids,
            bias=_verdict_bias(rendered, asked.threshold) if verdict and asked.threshold is not None else {},
            score_draft=scored,
            approve=_above(asked.threshold) if scored and asked.threshold else None,
        )
        if not asked.score_only:
            return made
        if verdict:
            return replace(made, max_new=1, draft=None, bias={}, stream=False)
        return replace(made, max_new=0, score_draft=True, approve=None, stream=False)

    def _parsed(self, job: Job, generation: Generation) -> Parsed:
        _require_finished(generation)
        if job.rendered is None or self._template is None or self._tokenizer is None:
            return Parsed(keep=generation.approved, text=generation.text or "", criteria=generation.criteria)
        if job.request is not None and job.request.approve is not None and generation.approved:
            return Parsed(keep=True, text=job.exchange.answer)
        # A template's only stop id is its verdict KEEP, which needs nothing after it.
        ended = job.rendered.stop_ids if generation.finish == "stop" else ()
        return self._template.parse((*generation.ids, *ended), self._tokenizer, job.rendered)

    def _assembled(self, job: Job, generation: Generation, parsed: Parsed) -> Correction:
        answer = job.exchange.answer
        notes = "; ".join(job.rendered.notes) if job.rendered is not None else ""
        given = {**self._measured(job, generation), "tokens": _tokens(job, generation)}
        if parsed.keep or parsed.text == answer:
            copied = "" if parsed.keep else "written again without a change"
            return self.correction(job.exchange, "approved", reason="; ".join(filter(None, [notes, copied])), **given)
        if not parsed.text.strip():
            return self.correction(job.exchange, "kept", reason="the correction was empty", **given)
        corrected = self.correction(job.exchange, "corrected", reason=notes, criteria=parsed.criteria, **given)
        return replace(corrected, text=parsed.text, edits=edits_between(answer, parsed.text))

    def _measured(self, job: Job, generation: Generation) -> dict[str, Any]:
        known = self.score and job.threshold is not None
        return {
            "usage": generation.usage,
            "scores": self._scores(job, generation),
            "thresholds": {self.score: job.threshold} if known else {},
        }

    def _scores(self, job: Job, generation: Generation) -> Mapping[str, float]:
        if job.rendered is None:
            return generation.scores
        if generation.choice_logprobs:
            keep, fix = (generation.choice_logprobs[token] for token in job.rendered.choices)
            # The difference can be so large that exp overflows; then the probability is 0 to every digit.
            return {"keep": 1 / (1 + math.exp(min(fix - keep, 700.0)))}
        # A token that was never proposed has no value, and the least of them is then not known.
        least = math.nan if self.score != "copy" else _least(generation.draft_logprobs or ())
        return {} if math.isnan(least) else {"copy": math.exp(least)}


def _least(values: Sequence[float]) -> float:
    return math.nan if not values or any(map(math.isnan, values)) else min(values)


def _above(threshold: float) -> float:
    """The lowest log-probability that is above the threshold, beyond what rounding makes of it."""
    return math.log(threshold) + 1e-9


def _verdict_bias(rendered: Rendered, threshold: float) -> dict[int, float]:
    """Has KEEP written where its probability against FIX is above the threshold: one of them is made likelier.

    Holding the other one down would do the same to their odds, but a model that is certain could then write neither.
    """
    keep, fix = rendered.choices
    if threshold in (0.0, 1.0):
        return {fix if threshold else keep: CERTAIN}
    nats = math.log(threshold / (1 - threshold))
    return {fix: nats} if nats > 0 else {keep: -nats} if nats < 0 else {}


def _generation(ticket: Ticket | None) -> Generation | AlignerError:
    """What the engine made of a ticket nobody waits for any more: a generation, or the error in its place."""
    if ticket is None or not ticket.future.done() or ticket.future.cancelled():
        return _timed_out()
    error = ticket.future.exception()
    if error is None:
        return ticket.future.result()
    if isinstance(error, AlignerError):
        return error
    failure = EngineError(f"The engine failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _require_finished(generation: Generation) -> None:
    """Raises where the output broke off: half a correction is never served."""
    if generation.finish in ("deadline", "cancelled"):
        raise _timed_out()
    if generation.finish == "length":
        raise IncompleteCorrectionError(
            f"The correction was not finished after {len(generation.ids)} tokens, half as much again as the answer. Ways "
            "out: an Aligner with a longer window, or one that was trained for small changes; an untrained model never "
            "ends."
        )


def _tokens(job: Job, generation: Generation) -> tuple[TokenScore, ...]:
    """The answer's tokens whose log-probabilities came with the draft."""
    if job.rendered is None or generation.draft_logprobs is None:
        return ()
    scored = zip(job.rendered.draft.spans, generation.draft_logprobs, strict=True)
    return tuple(
        TokenScore(start=start, end=end, logprob=value) for (start, end), value in scored if not math.isnan(value)
    )


def _timed_out() -> CorrectionTimeoutError:
    return CorrectionTimeoutError(
        "The correction was not finished in the time given. Ways out: a longer timeout=, fewer exchanges in one call, or "
        "a GPU."
    )


def _no_question() -> PromptNotFoundError:
    return PromptNotFoundError(
        "The exchange holds no question: none of its turns is a user's with a text. An answer is never corrected blind; "
        "put the question into Exchange.turns.",
        reason="unknown",
    )
