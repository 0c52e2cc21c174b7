"""The Aligner: exchanges in, corrections out. Rendering and assembling are pure; between them one engine runs.

A batch is the primitive; one exchange is a batch of one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.checkpoint import FILE as ALIGNER_FILE
from aligner_chain.checkpoint import AlignerMetadata, read_metadata
from aligner_chain.engines.base import Engine, Generation, Request, Ticket
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
    TemplateError,
)
from aligner_chain.exchange import Correction, Exchange, TokenScore, Turn, edits_between, uuid7
from aligner_chain.session import Reading, Session
from aligner_chain.streaming import Pieces, awoken, woken
from aligner_chain.telemetry import spans
from aligner_chain.templates import CorrectionTemplate, Parsed, Rendered, get_template

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from llama_index.core.llms import LLM
    from transformers import PreTrainedTokenizerBase as Tokenizer


class Aligner:
    """Corrects answers. Make one with `from_pretrained`, `from_chat_model` or `scripted`; it may be shared by threads.

    `metadata` names it; `identity` is `name@version`. With an engine of tokens, `template` and `tokenizer` are needed.
    `adapter` names one that the engine has loaded.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        metadata: AlignerMetadata,
        template: CorrectionTemplate | None = None,
        tokenizer: Tokenizer | None = None,
        adapter: str | None = None,
    ) -> None:
        if engine.capabilities.tokens and (template is None or tokenizer is None):
            raise ConfigurationError(
                "An engine of tokens needs a template and a tokenizer: Aligner(engine, metadata=..., "
                "template=get_template(name), tokenizer=engine.tokenizer)."
            )
        if template is not None and tokenizer is not None:
            template.check(tokenizer)
        self.engine, self.metadata, self.template, self.tokenizer = engine, metadata, template, tokenizer
        self._adapter = adapter
        self._caution = _caution(metadata)
        self._submit: Callable[[Sequence[Request]], Sequence[Ticket]] = engine.submit

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        template: str | CorrectionTemplate | None = None,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Aligner:
        """Loads an Aligner from a model folder or a hub id.

        `template` names the template of a checkpoint without `aligner.json`, and overrides the one in it; `revision`
        is a hub revision; `device` and `dtype` "auto" are bf16 on CUDA when there is one, else fp32 on the CPU.

        Raises `CheckpointError` for what cannot be loaded and `TemplateError` for a template that does not fit.
        """
        from aligner_chain.engines.huggingface import HuggingFaceEngine
        from aligner_chain.engines.loading import local_folder

        folder = local_folder(path, revision)
        metadata = _metadata(path, folder, template, revision)
        chosen = template if isinstance(template, CorrectionTemplate) else get_template(metadata.template)
        if template is None and metadata.template_text not in ("", chosen.text):
            raise _other_text(folder, metadata)
        engine = HuggingFaceEngine.from_pretrained(folder, device=device, dtype=dtype)
        return cls(engine, metadata=metadata, template=chosen, tokenizer=engine.tokenizer)

    @classmethod
    def from_chat_model(cls, chat_model: BaseChatModel | LLM) -> Aligner:
        """An Aligner without training: a chat model of LangChain or LlamaIndex corrects under minimal-edit instructions."""
        from aligner_chain.engines.chat import TEMPLATE, ChatEngine

        model: Any = chat_model
        known = (getattr(model, "model_name", None), getattr(model, "model", None))
        told = getattr(getattr(model, "metadata", None), "model_name", None)  # LlamaIndex
        name = next((str(name) for name in (*known, told) if name and name != "unknown"), type(model).__name__)
        return cls(ChatEngine(chat_model), metadata=AlignerMetadata(name=name, version="chat", template=TEMPLATE))

    @classmethod
    def scripted(cls, script: Callable[[Exchange], str]) -> Aligner:
        """A fake for tests: `script` returns the corrected text, and the same text approves the answer."""
        from aligner_chain.engines.scripted import ScriptedEngine

        metadata = AlignerMetadata(name="scripted", version="1", template="scripted")
        return cls(ScriptedEngine(script), metadata=metadata)

    def with_adapter(self, path: str | Path) -> Aligner:
        """An Aligner on the same model in memory with the PEFT adapter in a folder or behind a hub id.

        The folder's `aligner.json` names it and its version, else the folder does; a version is loaded once. Both Aligners
        serve side by side, and closing the new one frees the adapter alone.

        Raises:
            CapabilityError: The engine has no adapters, or has this version already.
            CheckpointError: The adapter does not fit the model.
            TemplateError: It was trained for another template than this Aligner's.
        """
        from aligner_chain.engines.loading import local_folder

        folder = local_folder(path)
        metadata = _adapter_metadata(folder, self.metadata)
        self.engine.load(metadata.identity, folder)
        return Aligner(
            self.engine,
            metadata=metadata,
            template=self.template,
            tokenizer=self.tokenizer,
            adapter=metadata.identity,
        )

    def __deepcopy__(self, memo: object) -> Aligner:
        return self  # One model in memory, however often a framework copies what holds it.

    @property
    def identity(self) -> str:
        """`name@version`."""
        return self.metadata.identity

    def correct(
        self,
        exchanges: Sequence[Exchange],
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,
    ) -> list[Correction]:
        """Corrects each answer; one `Correction` per exchange, in the same order.

        Args:
            exchanges: What was asked and answered. An empty answer is skipped.
            criteria: What to judge by, in the Aligner's own words; None: what it was trained for.
            strength: Nats by which KEEP is made less likely (negative: more). None or 0: KEEP is believed from the
                probability on that `thresholds["keep"]` of aligner.json names, or 0.5.
            timeout: Seconds for all of them together; None: without end. What is not finished then has failed.

        What goes wrong with one answer does not raise: its correction has the outcome "failed", the `error`, and the
        original as its text.

        Raises:
            CapabilityError: The Aligner has no place for criteria, or no verdict to bias.
        """
        with spans(self.identity, exchanges) as observed:
            jobs, tickets = self._start(exchanges, criteria, strength, timeout)
            try:
                running = [ticket.future for ticket in tickets if not ticket.future.done()]
                if running:
                    wait(running, timeout=timeout)
            finally:
                _cancel(tickets)
            corrections = [self._finish(job) for job in jobs]
            observed.end(corrections)
        return corrections

    async def acorrect(
        self,
        exchanges: Sequence[Exchange],
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `correct`)
    ) -> list[Correction]:
        """`correct` without blocking the event loop; cancelling the task cancels what is being decoded."""
        with spans(self.identity, exchanges) as observed:
            jobs, tickets = self._start(exchanges, criteria, strength, timeout)
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.gather(
                        *(asyncio.wrap_future(ticket.future) for ticket in tickets), return_exceptions=True
                    )
            except TimeoutError:
                pass  # told apart for each job by `_finish`
            finally:
                _cancel(tickets)
            corrections = [self._finish(job) for job in jobs]
            observed.end(corrections)
        return corrections

    def stream(
        self,
        exchange: Exchange,
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,
    ) -> Generator[str | Correction, None, None]:
        """The served text in pieces while it is decoded, and last the `Correction`.

        An answer that is kept comes as one piece, after the verdict. Of one that failed no text comes, except what was
        out when a correction broke off; its original is the caller's to serve. An engine that gives no tokens before its
        end gives one piece. Closing the iterator stops the decoding. Arguments and errors are those of `correct`.
        """
        with spans(self.identity, [exchange]) as observed:
            [job], tickets = self._start([exchange], criteria, strength, timeout, stream=True)
            pieces = Pieces(self._reader(job))
            try:
                for _ in woken(tickets, timeout):
                    if piece := pieces.next(tickets[0].ids):
                        yield piece
            finally:
                _cancel(tickets)
            piece, correction = pieces.end(self._finish(job))
            observed.end([correction])
        if piece:
            yield piece
        yield correction

    async def astream(
        self,
        exchange: Exchange,
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  (the same name and meaning as in `stream`)
    ) -> AsyncGenerator[str | Correction, None]:
        """`stream` without blocking the event loop."""
        with spans(self.identity, [exchange]) as observed:
            [job], tickets = self._start([exchange], criteria, strength, timeout, stream=True)
            pieces = Pieces(self._reader(job))
            try:
                async for _ in awoken(tickets, timeout):
                    if piece := pieces.next(tickets[0].ids):
                        yield piece
            finally:
                _cancel(tickets)
            piece, correction = pieces.end(self._finish(job))
            observed.end([correction])
        if piece:
            yield piece
        yield correction

    def begin(
        self,
        turns: Sequence[Turn],
        context: Sequence[str] = (),
        *,
        criteria: Sequence[str] | None = None,
        strength: float | None = None,
    ) -> Session:
        """A session that reads the answer while the upstream still writes it, so that little is left to do at its end.

        Args:
            turns: The conversation before the answer.
            context: The passages that were retrieved for it.
            criteria: As in `correct`.
            strength: As in `correct`.

        What is wrong with any of it shows when the session is finished, as it does in `correct`. An engine that cannot
        read a growing prompt starts then.
        """
        exchange = Exchange(turns=tuple(turns), answer="", context=tuple(context))
        reading = Reading(self.engine, self._beginning(exchange, criteria or ()), self._adapter)
        reader = copy(self)
        reader._submit = reading.submit  # noqa: SLF001  (a copy of its own kind)
        return Session(reader, reading, exchange, criteria=criteria, strength=strength)

    def close(self) -> None:
        """Finishes what runs and frees the model, or only the adapter, if it has one."""
        if self._adapter is None:
            self.engine.close()
        else:
            self.engine.unload(self._adapter)

    def _start(
        self,
        exchanges: Sequence[Exchange],
        criteria: Sequence[str] | None,
        strength: float | None,
        timeout: float | None,
        *,
        stream: bool = False,
    ) -> tuple[list[_Job], list[Ticket]]:
        self._check_strength(strength)
        can = self.engine.capabilities
        asked = {
            "criteria": tuple(criteria or ()),
            "adapter": self._adapter,
            "deadline_s": timeout if can.deadline else None,
            "stream": stream and can.stream,
        }
        jobs = [self._job(exchange, asked, (strength or 0.0) + self._caution) for exchange in exchanges]
        running = [job for job in jobs if job.request is not None]
        try:
            tickets = list(self._submit([job.request for job in running if job.request is not None]))
        except EngineError as error:
            return [_Job(job.exchange, settled=job.settled or self._failed(job.exchange, error)) for job in jobs], []
        for job, ticket in zip(running, tickets, strict=True):
            job.ticket = ticket
        return jobs, tickets

    def _check_strength(self, strength: float | None) -> None:
        verdict = self.template is not None and self.template.verdict
        if strength and not (verdict and self.engine.capabilities.bias):
            raise CapabilityError(
                f"strength= moves the verdict KEEP, which {self.identity} ({self.metadata.template}) does not give. Call "
                "correct() without it, or train an Aligner with a verdict: aligner-bootstrap train-aligner."
            )

    def _job(self, exchange: Exchange, asked: Mapping[str, Any], strength: float) -> _Job:
        if not exchange.answer.strip():
            return _Job(exchange, settled=self._correction(exchange, "skipped", reason="the answer is empty"))
        if not exchange.question.strip():
            return _Job(exchange, settled=self._failed(exchange, _no_question()))
        request = Request(key=str(uuid7()), exchange=exchange, **asked)
        if self.template is None or self.tokenizer is None:
            return _Job(exchange, request)
        try:
            rendered = self.template.render(
                exchange, self.tokenizer, window=self.engine.capabilities.window, criteria=request.criteria
            )
        except CorrectionError as error:
            return _Job(exchange, settled=self._failed(exchange, error))
        return _Job(exchange, _with_tokens(request, rendered, strength), rendered)

    def _beginning(self, exchange: Exchange, criteria: Sequence[str]) -> Callable[[str], tuple[int, ...]] | None:
        """What gives the beginning of the prompt, where the engine can use it and the exchange allows it."""
        can = self.engine.capabilities
        if not can.overlap or self.template is None or self.tokenizer is None or not exchange.question.strip():
            return None
        try:
            return self.template.beginning(exchange, self.tokenizer, window=can.window, criteria=criteria)
        except Exception:  # noqa: BLE001  The upstream may go on writing; the finish raises it, or tells of it.
            return None

    def _reader(self, job: _Job) -> Callable[[Sequence[int]], str]:
        if job.rendered is None or self.template is None or self.tokenizer is None:
            return lambda ids: ""
        return self.template.reader(self.tokenizer, job.rendered)

    def _finish(self, job: _Job) -> Correction:
        if job.settled is not None:
            return job.settled
        generation = _generation(job.ticket)
        if isinstance(generation, Exception):
            return self._failed(job.exchange, generation)
        try:
            return self._assembled(job, generation, self._parsed(job, generation))
        except CorrectionError as error:
            return replace(self._failed(job.exchange, error), usage=generation.usage, scores=_scores(job, generation))

    def _parsed(self, job: _Job, generation: Generation) -> Parsed:
        _require_finished(generation)
        if job.rendered is None or self.template is None or self.tokenizer is None:
            return Parsed(keep=generation.approved, text=generation.text or "", criteria=generation.criteria)
        # A template's only stop id is its verdict KEEP, which needs nothing after it.
        ended = job.rendered.stop_ids if generation.finish == "stop" else ()
        return self.template.parse((*generation.ids, *ended), self.tokenizer, job.rendered)

    def _assembled(self, job: _Job, generation: Generation, parsed: Parsed) -> Correction:
        answer = job.exchange.answer
        notes = "; ".join(job.rendered.notes) if job.rendered is not None else ""
        given = {"usage": generation.usage, "scores": _scores(job, generation), "tokens": _tokens(job, generation)}
        if parsed.keep or parsed.text == answer:
            copied = "" if parsed.keep else "written again without a change"
            return self._correction(job.exchange, "approved", reason="; ".join(filter(None, [notes, copied])), **given)
        if not parsed.text.strip():
            return self._correction(job.exchange, "kept", reason="the correction was empty", **given)
        corrected = self._correction(job.exchange, "corrected", reason=notes, criteria=parsed.criteria, **given)
        return replace(corrected, text=parsed.text, edits=edits_between(answer, parsed.text))

    def _failed(self, exchange: Exchange, error: Exception) -> Correction:
        return self._correction(exchange, "failed", reason=str(error).partition(". ")[0], error=error)

    def _correction(self, exchange: Exchange, outcome: Any, **rest: Any) -> Correction:
        return Correction(
            exchange=exchange,
            text=exchange.answer,
            outcome=outcome,
            aligner=self.identity,
            template=self.metadata.template,
            **rest,
        )


@dataclass(slots=True)
class _Job:
    """One exchange on its way: settled without the engine, or a request with its ticket."""

    exchange: Exchange
    request: Request | None = None
    rendered: Rendered | None = None
    settled: Correction | None = None
    ticket: Ticket | None = None


def _metadata(
    path: str | Path, folder: Path, template: str | CorrectionTemplate | None, revision: str | None
) -> AlignerMetadata:
    """What `aligner.json` says, or what can be said without it where the caller names the template."""
    if template is None:
        return read_metadata(folder)
    name = template if isinstance(template, str) else template.name
    try:
        return replace(read_metadata(folder), template=name)
    except CheckpointError:
        return AlignerMetadata(name=Path(path).name, version=revision or "0", template=name)


def _adapter_metadata(folder: Path, base: AlignerMetadata) -> AlignerMetadata:
    if not (folder / ALIGNER_FILE).exists():
        return AlignerMetadata(name=folder.name, version="0", template=base.template)
    metadata = read_metadata(folder)
    if metadata.template != base.template:
        raise TemplateError(
            f"The adapter in {folder} was trained for the template {metadata.template}, and {base.identity} has "
            f"{base.template}. Load it with its own base: Aligner.from_pretrained(folder)."
        )
    return metadata


def _other_text(folder: Path, metadata: AlignerMetadata) -> TemplateError:
    return TemplateError(
        f"{folder} was trained with another text of the template {metadata.template} than this version of aligner-chain "
        f"has:\n{metadata.template_text}\nWays out: install the version that trained it "
        f"({metadata.package_version}), train it anew with aligner-bootstrap train-aligner, or, if the difference does "
        f'not matter, pass template="{metadata.template}".'
    )


def _caution(metadata: AlignerMetadata) -> float:
    """The log-odds that KEEP needs, in nats; 0 where `aligner.json` has no threshold for it."""
    threshold = metadata.thresholds.get("keep", 0.5)
    if not 0 < threshold < 1:
        raise CheckpointError(
            f'The threshold "keep" of {metadata.identity} is {threshold}; it must be between 0 and 1. Mend it in '
            "aligner.json, or take it out there."
        )
    return math.log(threshold / (1 - threshold))


def _verdict_bias(rendered: Rendered, strength: float) -> dict[int, float]:
    """Makes FIX likelier by `strength` nats, or KEEP by its negative.

    Holding the other one down would do the same to their odds, but a model that is certain could then write neither.
    """
    if not strength:
        return {}
    keep, fix = rendered.choices
    return {fix: strength} if strength > 0 else {keep: -strength}


def _with_tokens(request: Request, rendered: Rendered, strength: float) -> Request:
    return replace(
        request,
        prompt=rendered.prompt,
        max_new=rendered.max_new,
        draft=rendered.draft,
        choices=rendered.choices,
        bias=_verdict_bias(rendered, strength),
        stop_ids=rendered.stop_ids,
    )


def _cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        if not ticket.future.done():
            ticket.cancel()


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


def _scores(job: _Job, generation: Generation) -> Mapping[str, float]:
    """The probability of KEEP against FIX, before any bias."""
    if job.rendered is None or not generation.choice_logprobs:
        return {}
    keep, fix = (generation.choice_logprobs[token] for token in job.rendered.choices)
    # The difference can be so large that exp overflows; then the probability is 0 to every digit.
    return {"keep": 1 / (1 + math.exp(min(fix - keep, 700.0)))}


def _tokens(job: _Job, generation: Generation) -> tuple[TokenScore, ...]:
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
