"""One answer's way through an Aligner: what its engine is asked, and what the output means. Nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
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
from aligner_chain.templates.base import GROWTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

CERTAIN = 1e4
"""Nats by which a verdict is pushed that is not to be asked for; no model is that sure of the other one."""


OWN_SCORES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"leave": ("leave", "keep"), "keep": ("keep",), "copy": ("copy", "leave"), "": ()}
)
"""By what an engine can tell of an answer: the scores for which an Aligner may bring a threshold, the better one first.

Without a verdict the score of leaving an answer is that of copying it, by whichever name its threshold goes.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """An answer whose `score` is above `threshold` stays as it is; every other one is corrected."""

    score: str
    threshold: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one call asks of every answer. Without a gate the engine simply decodes."""

    criteria: tuple[str, ...] = ()
    adapter: str | None = None
    gate: Gate | None = None
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
    gate: Gate | None = None


class Assembly:
    """Makes requests of exchanges and corrections of generations, for one Aligner. `score` names the best it says of an answer.

    "keep" is the probability of the verdict KEEP. "copy" is that of the one token of the answer that the Aligner is least
    likely to leave as it is, or of nothing being added, whichever is less. "leave" is the greater of the two: an Aligner
    leaves an answer by calling it right, or by writing it again, and one may be sure of the second without being sure of the
    first. Without a verdict there is "copy" alone, and "" is the name where the engine tells neither.
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
        drafted = template is not None and capabilities.score_draft
        self.score = "leave" if verdict and drafted else "keep" if verdict else "copy" if drafted else ""
        self._gate = self._own_gate()

    def gate(self, strength: float | None) -> Gate | None:
        """What an answer needs to stay as it is. Raises `CapabilityError` and `ConfigurationError`."""
        if strength is None:
            return self._gate
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
        return Gate(score=self.score, threshold=strength)

    def job(self, exchange: Exchange, asked: Asked) -> Job:
        """What is to be done with an exchange. What is wrong with it alone settles it."""
        if not exchange.answer.strip():
            return Job(exchange, settled=self.correction(exchange, "skipped", reason="the answer is empty"))
        if not exchange.question.strip():
            return Job(exchange, settled=self.failed(exchange, _no_question()))
        if asked.gate is not None and asked.gate.threshold == 0 and not asked.score_only:
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
            return Job(exchange, request, gate=asked.gate)
        try:
            rendered = self._template.render(
                exchange,
                self._tokenizer,
                window=self._can.window,
                criteria=request.criteria,
                longest=self._metadata.longest_output or self._template.longest_output,
            )
        except CorrectionError as error:
            return Job(exchange, settled=self.failed(exchange, error))
        return Job(exchange, self._with_tokens(request, rendered, asked), rendered, gate=asked.gate)

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
        if isinstance(generation, Exception):
            return {}
        found = _scores(job, generation)
        return {self.score: found[self.score]} if self.score in found else {}

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

    def _own_gate(self) -> Gate | None:
        """What was calibrated, else what `aligner.json` names, else the likelier verdict."""
        for name in OWN_SCORES[self.score]:
            threshold = self._metadata.threshold_of(name)
            if threshold is None:
                threshold = self._named(name)
            if threshold is not None:
                return Gate(score="copy" if self.score == "copy" else name, threshold=threshold)
        return Gate(score="keep", threshold=0.5) if "keep" in OWN_SCORES[self.score] else None

    def _named(self, score: str) -> float | None:
        """The threshold that `aligner.json` names without a calibration."""
        threshold = self._metadata.thresholds.get(score)
        if threshold is not None and not 0 < threshold < 1:
            raise CheckpointError(
                f'The threshold "{score}" of {self._metadata.identity} is {threshold}; it must be between 0 and 1. '
                "Mend it in aligner.json, or take it out there."
            )
        return threshold

    def _with_tokens(self, request: Request, rendered: Rendered, asked: Asked) -> Request:
        gate = asked.gate
        scored = gate is not None and gate.score in ("leave", "copy") and gate.threshold < 1
        made = replace(
            request,
            prompt=rendered.prompt,
            max_new=rendered.max_new,
            draft=rendered.draft,
            choices=rendered.choices if self._can.choices else (),
            stop_ids=rendered.stop_ids,
            bias=_verdict_bias(rendered, gate.threshold) if rendered.choices and gate is not None else {},
            score_draft=scored,
            approve=_above(gate.threshold) if scored and gate is not None and gate.threshold else None,
        )
        if not asked.score_only:
            return made
        if self.score == "keep":
            return replace(made, max_new=1, draft=None, bias={}, stream=False)
        return replace(made, max_new=0, bias={}, score_draft=True, approve=None, stream=False)

    def _parsed(self, job: Job, generation: Generation) -> Parsed:
        self._require_finished(job, generation)
        if job.rendered is None or self._template is None or self._tokenizer is None:
            return Parsed(keep=generation.approved, text=generation.text or "", criteria=generation.criteria)
        if job.request is not None and job.request.approve is not None and generation.approved:
            return Parsed(keep=True, text=job.exchange.answer)
        # A template's only stop id is its verdict KEEP, which needs nothing after it.
        ended = job.rendered.stop_ids if generation.finish == "stop" else ()
        return self._template.parse((*generation.ids, *ended), self._tokenizer, job.rendered)

    def _require_finished(self, job: Job, generation: Generation) -> None:
        """Raises where the output means nothing or broke off: half a correction is never served."""
        if generation.error is not None:
            raise generation.error
        if generation.finish in ("deadline", "cancelled"):
            raise _timed_out()
        if generation.finish == "length":
            raise _unfinished(job, generation, self._can.window)

    def _assembled(self, job: Job, generation: Generation, parsed: Parsed) -> Correction:
        answer = job.exchange.answer
        rendered = job.rendered.notes if job.rendered is not None else ()
        notes = "; ".join((*rendered, *generation.notes))
        given = {**self._measured(job, generation), "tokens": _tokens(job, generation)}
        if parsed.keep or parsed.text == answer:
            copied = "" if parsed.keep else "written again without a change"
            return self.correction(job.exchange, "approved", reason="; ".join(filter(None, [notes, copied])), **given)
        if not parsed.text.strip():
            return self.correction(job.exchange, "kept", reason="the correction was empty", **given)
        corrected = self.correction(job.exchange, "corrected", reason=notes, criteria=parsed.criteria, **given)
        return replace(corrected, text=parsed.text, edits=edits_between(answer, parsed.text))

    def _measured(self, job: Job, generation: Generation) -> dict[str, Any]:
        gate = job.gate if job.gate is not None and job.gate.score else None
        return {
            "usage": generation.usage,
            "scores": _scores(job, generation),
            "thresholds": {} if gate is None else {gate.score: gate.threshold},
        }


def _scores(job: Job, generation: Generation) -> Mapping[str, float]:
    if job.rendered is None:
        return generation.scores
    copy = _copy_score(generation)
    if not generation.choice_logprobs:
        return {} if copy is None else {"copy": copy}
    keep, fix = (generation.choice_logprobs[token] for token in job.rendered.choices)
    # The difference can be so large that exp overflows; then the probability is 0 to every digit.
    said = 1 / (1 + math.exp(min(fix - keep, 700.0)))
    return {"keep": said} if copy is None else {"keep": said, "leave": max(said, copy)}


def _copy_score(generation: Generation) -> float | None:
    """The probability of the least likely token of the draft, or of its end; None where one of them is not known."""
    if not generation.draft_logprobs or generation.draft_end_logprob is None:
        return None
    return math.exp(min(*generation.draft_logprobs, generation.draft_end_logprob))


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


def _tokens(job: Job, generation: Generation) -> tuple[TokenScore, ...]:
    """The answer's tokens whose log-probabilities came with the draft."""
    if job.rendered is None or generation.draft_logprobs is None:
        return ()
    scored = zip(job.rendered.draft.spans, generation.draft_logprobs, strict=True)
    return tuple(
        TokenScore(start=start, end=end, logprob=value) for (start, end), value in scored if not math.isnan(value)
    )


def _unfinished(job: Job, generation: Generation, window: int | None) -> IncompleteCorrectionError:
    """An output that was longer than there is room for in the window, or than a correction of its answer may be."""
    rendered = job.rendered
    if rendered is not None and window is not None and len(rendered.prompt) + rendered.max_new >= window:
        bound = f"all that the model's window of {window} has room for"
        ways = "an Aligner with a longer window, or a shorter answer from the upstream (its max_tokens)"
    else:
        bound = f"the most that one gets: half as many again as its answer has and {GROWTH}, or those of its training"
        ways = '"longest_output": 2048, say, in its aligner.json, where its corrections are longer (an untrained one never ends)'
    return IncompleteCorrectionError(
        f"The correction was not finished after {len(generation.ids)} tokens, {bound}. Ways out: {ways}; "
        'on_error="pass_through", which serves such an answer as it is; for a batch of a chain return_exceptions=True, '
        "which keeps the other answers."
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
