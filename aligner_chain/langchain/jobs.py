"""One answer on its way through the corrector: what it holds, what was asked, what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables.utils import ConfigurableFieldSpec

from aligner_chain.errors import PromptNotFoundError
from aligner_chain.exchange import Correction, Exchange, Turn
from aligner_chain.langchain.messages import (
    Answer,
    known_turns,
    prompt_not_found,
    read_answer,
    run_id_of,
    skip_reason,
    upstream_in,
)
from aligner_chain.langchain.recorder import PromptRecord, recorder
from aligner_chain.structured import is_structured, same_shape

_T = TypeVar("_T")
_Run = TypeVar("_Run")

Structured = Literal["skip", "validate"]

CONFIGURABLE = (
    ConfigurableFieldSpec(
        id="aligner_question",
        annotation=str | None,
        default=None,
        description="The question of the answer to correct.",
    ),
    ConfigurableFieldSpec(
        id="aligner_enabled",
        annotation=bool,
        default=True,
        description="False hands the answer on as it is.",
    ),
    ConfigurableFieldSpec(
        id="aligner_split_key",
        annotation=str | None,
        default=None,
        description="Records with the same key are held out from training together, or not at all.",
    ),
    ConfigurableFieldSpec(
        id="aligner_subject",
        annotation=str | None,
        default=None,
        description="The person whom the record is about.",
    ),
)
"""What `config["configurable"]` may hold for a corrector."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a chat model, what the caller configured, and where they are known the model's run and name."""

    messages: list[BaseMessage]
    configurable: Mapping[str, Any]
    run_id: UUID | None = None
    upstream: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the question of an answer may come from, and how the answer is to be read."""

    configurable: Mapping[str, Any]
    question: str | None
    prompt_source: Literal["auto", "explicit"]
    structured: Structured
    parent: UUID | None = None
    """The run that the corrector runs in."""
    chunk_ids: Sequence[str] = ()
    run_id: UUID | None = None
    upstream: str | None = None
    """The run and the model that gave the answer, where the caller knows them."""

    def configured(self, key: str, kind: type[_T]) -> _T | None:
        """What the caller configured under `key`.

        Raises:
            TypeError: it is not of that kind.
        """
        value = self.configurable.get(key)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f'config["configurable"]["{key}"] must be a {kind.__name__}, not {type(value).__name__}.')
        return value


@dataclass(kw_only=True, slots=True)
class Job:
    """One input. It waits for the Aligner as long as it has neither a correction nor an error, but an exchange."""

    answer: Answer | None = None
    exchange: Exchange | None = None
    correction: Correction | None = None
    error: Exception | None = None
    structured: bool = False
    """Whether the correction must be JSON of the answer's shape."""

    @property
    def waits(self) -> bool:
        """Whether the Aligner is still to see it."""
        return self.exchange is not None and self.correction is None

    @property
    def plain(self) -> bool:
        """Whether the answer is nothing but text, which can be handed out piece by piece."""
        message = self.answer.message if self.answer else None
        return not self.structured and (message is None or isinstance(message.content, str))

    def settle(self, correction: Correction) -> None:
        """Takes the Aligner's correction, or refuses it where it breaks what the answer is for."""
        if self.structured and correction.changed and not same_shape(correction.exchange.answer, correction.text):
            correction = correction.refused("the correction is not JSON of the same shape")
        self.correction = correction


def prepare(value: object, source: Source) -> Job:
    """Reads an input of the corrector; what is wrong with it is put into the job, since others share its batch."""
    job = Job(structured=source.structured == "validate")
    reason = ""
    try:
        job.answer = read_answer(value)
        reason = _skip_reason(job.answer.given, source)
        job.exchange = _exchange(job.answer, source)
    except (TypeError, PromptNotFoundError) as error:
        job.error = error
    if job.answer:
        job.structured = job.structured and is_structured(job.answer.text)
    if job.answer and reason:
        job.error = None  # What is not going to be corrected needs no question; there is then no record of it either.
        if job.exchange:
            job.correction = Correction(exchange=job.exchange, text=job.answer.text, outcome="skipped", reason=reason)
    return job


def asked_so_far(value: object, source: Source) -> tuple[Turn, ...]:
    """What the answer was asked that `value` is the beginning of; nothing where that is not known before its end."""
    try:
        answer = read_answer(value)
        turns = _said(answer, source)
    except TypeError:
        return ()
    if turns or answer.asked or source.prompt_source == "explicit":
        return turns
    return recorder().being_answered(source.parent, source.chunk_ids)


def waiting_for_aligner(jobs: Sequence[Job], runs: Sequence[_Run]) -> tuple[list[Job], list[Exchange], list[_Run]]:
    """The jobs that need the Aligner, with their exchanges and, where there are any, the corrector's run of each."""
    waiting = [(place, job, job.exchange) for place, job in enumerate(jobs) if job.exchange and job.waits]
    chosen = [runs[place] for place, _, _ in waiting] if runs else []
    return [job for _, job, _ in waiting], [exchange for _, _, exchange in waiting], chosen


def enabled(source: Source) -> bool:
    """Whether the caller left the corrector on.

    Raises:
        TypeError: `aligner_enabled` is no bool.
    """
    return source.configured("aligner_enabled", bool) is not False


def _skip_reason(given: AIMessage | str, source: Source) -> str:
    if not enabled(source):
        return "the corrector is turned off for this call"
    return skip_reason(given, structured=source.structured == "skip")


def _exchange(answer: Answer, source: Source) -> Exchange:
    message = answer.message
    message_id = message.id if message else None
    run_id = source.run_id or run_id_of(message_id)
    upstream = source.upstream or (upstream_in(message.response_metadata) if message else None)
    turns = _said(answer, source)
    if not turns and answer.asked:
        raise prompt_not_found("wordless")
    if not turns:
        record = _recorded(answer, source)
        turns, run_id, upstream = record.turns, record.run_id, upstream or record.upstream
    return Exchange(
        turns=turns,
        answer=answer.text,
        upstream=upstream,
        message_id=message_id,
        run_id=str(run_id) if run_id else None,
        subject=source.configured("aligner_subject", str),
        split_key=source.configured("aligner_split_key", str),
    )


def _said(answer: Answer, source: Source) -> tuple[Turn, ...]:
    """What was asked, by the input or by whoever set the corrector up."""
    question = source.configured("aligner_question", str) or source.question or ""
    return answer.turns or known_turns([HumanMessage(question)])


def _recorded(answer: Answer, source: Source) -> PromptRecord:
    if source.prompt_source == "explicit":
        raise prompt_not_found("unknown")
    return recorder().find(answer.given, source.parent, source.chunk_ids)
