"""One answer on its way through the corrector: what it holds, what was asked, what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, TypeVar
from uuid import UUID

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage

from aligner_chain.errors import PromptNotFoundError
from aligner_chain.exchange import Correction, Exchange
from aligner_chain.langchain.messages import (
    Answer,
    calls_tools,
    known_turns,
    prompt_not_found,
    read_answer,
    run_id_of,
    skip_reason,
    upstream_of,
)
from aligner_chain.langchain.recorder import PromptRecord, recorder

_Run = TypeVar("_Run")

CONFIGURABLE = {
    "aligner_question": "The question of the answer to correct.",
    "aligner_split_key": "Records with the same key are held out from training together, or not at all.",
    "aligner_subject": "The person whom the record is about.",
}
"""What `config["configurable"]` may hold for a corrector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the question of an answer may come from."""

    configurable: Mapping[str, Any]
    question: str | None
    prompt_source: Literal["auto", "explicit"]
    parent: UUID | None
    """The run that the corrector runs in."""
    chunk_ids: Sequence[str] = ()


@dataclass(kw_only=True, slots=True)
class Job:
    """One input. It waits for the Aligner as long as it has neither a correction nor an error, but an exchange."""

    answer: Answer | None = None
    exchange: Exchange | None = None
    correction: Correction | None = None
    error: Exception | None = None


def prepare(value: object, source: Source) -> Job:
    """Reads an input of the corrector; what is wrong with it is put into the job, since others share its batch."""
    job = Job()
    try:
        job.answer = read_answer(value)
        job.exchange = _exchange(job.answer, source)
    except (TypeError, PromptNotFoundError) as error:
        job.error = error
    if job.answer and (reason := skip_reason(job.answer.given)):
        job.error = None  # What is not going to be corrected needs no question; there is then no record of it either.
        if job.exchange:
            job.correction = Correction(exchange=job.exchange, text=job.answer.text, outcome="skipped", reason=reason)
    return job


def waiting_for_aligner(jobs: Sequence[Job], runs: Sequence[_Run]) -> tuple[list[Job], list[Exchange], list[_Run]]:
    """The jobs that need the Aligner, with their exchanges and the corrector's run of each."""
    waiting = [(job, job.exchange, run) for job, run in zip(jobs, runs, strict=True) if job.exchange]
    waiting = [(job, exchange, run) for job, exchange, run in waiting if job.correction is None]
    return [job for job, _, _ in waiting], [exchange for _, exchange, _ in waiting], [run for _, _, run in waiting]


class HeldStream:
    """The pieces of a streamed input, held back until it is whole, or until it turns out to call a tool."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.released = False

    def add(self, piece: Any) -> list[Any]:
        """Takes a piece in and returns what may be handed on by now."""
        self.pieces.append(piece)
        if self.released:
            return [piece]
        self.released = isinstance(piece, AIMessage) and calls_tools(piece)
        return list(self.pieces) if self.released else []

    def whole(self) -> Any:
        """All pieces as one input."""
        first, *others = self.pieces
        if others and all(isinstance(piece, AIMessageChunk) for piece in self.pieces):
            return first + others  # At once, because adding one by one copies the text each time.
        return "".join(self.pieces) if isinstance(first, str) else reduce(_joined, others, first)

    def ids(self) -> list[str]:
        """The ids of all pieces: merging them keeps a provider's id and loses that of the run."""
        return [piece.id for piece in self.pieces if isinstance(piece, BaseMessage) and piece.id]


def _joined(left: Any, right: Any) -> Any:
    if isinstance(left, BaseMessage) and not isinstance(left, AIMessageChunk):
        return right  # Whole messages added to each other would make a prompt.
    try:
        return left + right
    except TypeError:
        return right


def _exchange(answer: Answer, source: Source) -> Exchange:
    message = answer.message
    message_id = message.id if message else None
    run_id, upstream = run_id_of(message_id), upstream_of(message) if message else None
    question = _configured(source, "aligner_question") or source.question or ""
    turns = answer.turns or known_turns([HumanMessage(question)])
    if not turns:
        record = _recorded(answer, source)
        turns, run_id, upstream = record.turns, record.run_id, upstream or record.upstream
    return Exchange(
        turns=turns,
        answer=answer.text,
        upstream=upstream,
        message_id=message_id,
        run_id=str(run_id) if run_id else None,
        subject=_configured(source, "aligner_subject"),
        split_key=_configured(source, "aligner_split_key"),
    )


def _recorded(answer: Answer, source: Source) -> PromptRecord:
    if source.prompt_source == "explicit":
        raise prompt_not_found("unknown")
    return recorder().find(answer.given, source.parent, source.chunk_ids)


def _configured(source: Source, key: str) -> str | None:
    value = source.configurable.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(f'config["configurable"]["{key}"] must be a str, not {type(value).__name__}.')
    return value
