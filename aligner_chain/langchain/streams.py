"""Streams on both sides of the Aligner: held back until the answer is whole, and handed out in pieces again."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Self

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from aligner_chain.langchain.messages import METADATA_KEY, calls_tools, still_true, text_of
from aligner_chain.session import Session


class HeldStream:
    """The pieces of a streamed input, held back until it is whole, or until it turns out to call a tool.

    The Aligner reads along with it: `begin` is called at the first text, with that piece. What was not finished when the
    block is left is cancelled, and `ended` is called.
    """

    def __init__(
        self,
        begin: Callable[[AIMessageChunk | str], Session | None],
        *,
        released: bool = False,
        ended: Callable[[], None],
    ) -> None:
        self.pieces: list[Any] = []
        self.released, self._ended = released, ended
        self._session: Session | None = None
        self._begin: Callable[[AIMessageChunk | str], Session | None] | None = begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
        self._ended()

    def add(self, piece: Any) -> list[Any]:
        """Takes a piece in and returns what may be handed on by now."""
        self.pieces.append(piece)
        if self.released:
            return [piece]
        self.released = isinstance(piece, AIMessage) and calls_tools(piece)
        if self.released:
            self._cancel()
            return list(self.pieces)
        if isinstance(piece, str | AIMessageChunk) and text_of(piece) and not _is_last(piece):
            self._read(piece)
        return []

    def whole(self) -> Any:
        """All pieces as one input."""
        first, *others = self.pieces
        if others and all(isinstance(piece, AIMessageChunk) for piece in self.pieces):
            return first + others  # At once, because adding one by one copies the text each time.
        return "".join(self.pieces) if isinstance(first, str) else reduce(_joined, others, first)

    def ids(self) -> list[str]:
        """The ids of all pieces: merging them keeps a provider's id and loses that of the run."""
        return [piece.id for piece in self.pieces if isinstance(piece, BaseMessage) and piece.id]

    def _read(self, piece: AIMessageChunk | str) -> None:
        if self._begin is not None:
            self._session, self._begin = self._begin(piece), None
        if self._session is not None:
            self._session.feed(text_of(piece))

    def _cancel(self) -> None:
        if self._session is not None:
            self._session.cancel()


class StreamedAnswer:
    """A corrected answer in pieces that merge into one message: the first brings what the original had but its text."""

    def __init__(self, given: AIMessage | str) -> None:
        self._given = given
        self.started = False

    def piece(self, text: str) -> AIMessageChunk | str:
        """The next piece, which says `text`."""
        first, self.started = not self.started, True
        if isinstance(self._given, str):
            return text
        given = self._given
        if not first:
            return AIMessageChunk(content=text, id=given.id)
        return AIMessageChunk(
            content=text,
            id=given.id,
            name=given.name,
            additional_kwargs=given.additional_kwargs,
            response_metadata=still_true(given.response_metadata),
            usage_metadata=given.usage_metadata,
        )

    def end(self, summary: dict[str, Any]) -> list[AIMessageChunk]:
        """The piece that says what became of the answer; a text has no place for it."""
        if isinstance(self._given, str):
            return []
        metadata = {METADATA_KEY: summary}
        return [AIMessageChunk(content="", id=self._given.id, response_metadata=metadata, chunk_position="last")]


def marked_last(answer: Any) -> Any:
    """The answer as the end of a stream."""
    if isinstance(answer, AIMessageChunk) and answer.chunk_position != "last":
        return answer.model_copy(update={"chunk_position": "last"})
    return answer


def _is_last(piece: AIMessageChunk | str) -> bool:
    """Whether nothing comes after this piece, which then may as well be the whole answer of a model that cannot stream."""
    return isinstance(piece, AIMessageChunk) and piece.chunk_position == "last"


def _joined(left: Any, right: Any) -> Any:
    if isinstance(left, BaseMessage) and not isinstance(left, AIMessageChunk):
        return right  # Whole messages added to each other would make a prompt.
    try:
        return left + right
    except TypeError:
        return right
