"""The stream of an upstream on its way to the client: text is held until the Aligner and the checks have seen it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aligner_chain.exchange import Correction
from aligner_chain.proxy.answers import KEY, OF_TOKENS, calls_tools, refuses, told_of_tokens, with_text
from aligner_chain.proxy.asking import Asked, text_of
from aligner_chain.proxy.correcting import Answering, message_id_of, together
from aligner_chain.proxy.errors import cut
from aligner_chain.proxy.events import DONE, Event

_EMPTY: tuple[object, ...] = (None, "", [], {})


class Frame:
    """An event with a piece of one choice, and the object in it. `delta` is the piece, `text` the text in it."""

    __slots__ = ("body", "choice", "delta", "event", "finished", "text")

    def __init__(self, event: Event, body: dict[str, Any]) -> None:
        self.event, self.body = event, body
        self.choice: dict[str, Any] = body["choices"][0]
        delta = self.choice.get("delta")
        self.delta: dict[str, Any] = delta if isinstance(delta, dict) else {}
        self.text = text_of(self.delta.get("content"))
        self.finished = bool(self.choice.get("finish_reason"))

    @property
    def described(self) -> list[str]:
        """What the frame tells of the text beside a piece of it; some upstreams repeat all of it as a `message`."""
        annotated = ["annotations"] if self.delta.get("annotations") else []
        return [*told_of_tokens(self.choice), *annotated, *(["message"] if self.choice.get("message") else [])]

    @property
    def of_text(self) -> bool:
        """Whether it has to wait with the text. What it tells of tokens can be of a thought instead, which does not wait."""
        if self.text:
            return True
        described = set(self.described)
        if described - set(OF_TOKENS):
            return True
        names = ("role", "content", "annotations")
        return bool(described) and all(value in _EMPTY for name, value in self.delta.items() if name not in names)

    def saying(self, text: str, *, first: bool) -> Frame | None:
        """The frame with another text; None where it then says nothing. What described the old text goes.

        The `first` of those that were held may be the one that says whose turn it is.
        """
        delta = dict(self.delta)
        if "content" in delta:
            content = delta.pop("content")
            if text or not isinstance(content, str):
                delta["content"] = with_text(content, text) if text_of(content) else content
        delta.pop("annotations", None)
        choice = {**self.choice, "delta": delta, **dict.fromkeys(told_of_tokens(self.choice))}
        choice.pop("message", None)
        says = self.finished or any(value not in _EMPTY for name, value in delta.items() if first or name != "role")
        return self._with(choice) if says else None

    def told(self, told: dict[str, Any]) -> Frame:
        """The frame with what became of the answer."""
        return self._with({**self.choice, KEY: told})

    def _with(self, choice: dict[str, Any]) -> Frame:
        body = {**self.body, "choices": [choice]}
        return Frame(Event.of(body), body)


class HeldChoice:
    """The pieces of one choice: its text and its end are held, and everything else goes on as it comes.

    From the first sign on that the answer is not for the Aligner (a tool call, a refusal, sound), nothing more is held.
    """

    def __init__(self, index: int, answering: Answering, *, released: bool) -> None:
        self.index, self.answering, self.released = index, answering, released
        self.frames: list[Frame] = []
        self.finished = False
        self._contents: list[Any] = []
        self._signs: dict[
            str, Any
        ] = {}  # tool calls, refusals and the like, of which it only counts that they are there

    def add(self, frame: Frame) -> list[Frame]:
        """Takes a piece in and returns what may be sent by now."""
        self._note(frame.delta)
        out: list[Frame] = []
        if not self.released and self._signs:
            self.released = True
            self.answering.close()
            out, self.frames = self.frames, []
        self.finished = self.finished or frame.finished
        if self._holds(frame):
            self.frames.append(frame)
            if not self.released and frame.text:
                self.answering.read(frame.text)
            return out
        return [*out, frame]

    async def settle(self, upstream: str | None, completion_id: object) -> Correction:
        """What became of the answer. Raises as `Answering.settle`."""
        message_id = message_id_of(completion_id, self.index)
        return await self.answering.settle(self._message(), upstream=upstream, message_id=message_id)

    def delivered(self, correction: Correction, told: dict[str, Any] | None) -> list[Frame]:
        """What is left to send: the very pieces that were held, or a corrected text in the place of the first."""
        frames = list(self._saying(correction.text)) if correction.changed else self.frames
        if told is None or not frames:
            return frames
        if correction.changed and (dropped := dict.fromkeys(name for one in self.frames for name in one.described)):
            told = {**told, "dropped": list(dropped)}
        at = next((place for place, frame in enumerate(frames) if frame.finished), len(frames) - 1)
        return [*frames[:at], frames[at].told(told), *frames[at + 1 :]]

    def _saying(self, text: str) -> Iterator[Frame]:
        for place, frame in enumerate(self.frames):
            said, text = (text, "") if frame.text else ("", text)
            if (changed := frame.saying(said, first=place == 0)) is not None:
                yield changed

    def _holds(self, frame: Frame) -> bool:
        if self.finished or self.released:
            return self.finished
        listed = isinstance(frame.delta.get("content"), list)
        return frame.of_text or (listed and bool(self.frames))  # so that parts beside the text stay in their order

    def _note(self, delta: Mapping[str, Any]) -> None:
        if content := delta.get("content"):
            self._contents.append(content)
        found = {"tool_calls": calls_tools(delta), "refusal": refuses(delta), "audio": bool(delta.get("audio"))}
        self._signs |= {name: True for name, there in found.items() if there}

    def _message(self) -> dict[str, Any]:
        if all(isinstance(one, str) for one in self._contents):
            return {**self._signs, "content": _joined(self._contents)}
        parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in self._contents]
        flat = [part for one in parts for part in (one if isinstance(one, list) else [one])]
        return {**self._signs, "content": flat}


class HeldStream:
    """All that an upstream streams in answer to one request."""

    def __init__(self, asked: Asked, answering: Callable[[], Answering]) -> None:
        self._asked, self._answering = asked, answering
        self.choices: dict[int, HeldChoice] = {}
        self.broken = self.done = False
        self.corrections: list[Correction] = []
        self.completion_id: object = None
        self.usage: Mapping[str, Any] = {}
        self._upstream: str | None = None
        self._tail: list[Event] = []

    def add(self, event: Event) -> list[Event]:
        """Takes an event in and returns what may be sent by now.

        Raises:
            Refused: The event cannot be read.
        """
        if event.data.startswith(DONE):  # as OpenAI's clients read it
            self.done = True
            return []
        if not event.data:
            return [event]
        body = event.body()
        self._note(body)
        self.broken = self.broken or bool(body.get("error")) or event.kind == "error"
        choices = body.get("choices")
        if self.broken or not isinstance(choices, list) or not choices:
            return self._beside(event)
        if not all(isinstance(one, dict) for one in choices):
            raise cut("holds a choice that is no object")
        return [frame.event for one in _each(event, body) for frame in self._held(one).add(one)]

    async def end(self) -> list[Event]:
        """What is left to send when the upstream has ended.

        Raises:
            Refused: It ended too early, or a correction failed and `on_error` is "raise".
            AlignerError: There is no Aligner.
        """
        if self.broken:
            return []
        choices = list(self.choices.values())
        if not self.done and not (choices and all(one.finished for one in choices)):
            raise cut("broke off before its end")
        self.corrections = await together(one.settle(self._upstream, self.completion_id) for one in choices)
        left = [event for pair in zip(choices, self.corrections, strict=True) for event in self._left(*pair)]
        return [*left, *self._tail, Event(f"data: {DONE}", DONE)]

    def close(self) -> None:
        """Has the Aligner forget what it read of an answer that came to nothing."""
        for choice in self.choices.values():
            choice.answering.close()

    def _left(self, choice: HeldChoice, correction: Correction) -> list[Event]:
        choice.answering.passed(correction)
        told = None if self._asked.in_header else correction.summary()
        return [frame.event for frame in choice.delivered(correction, told)]

    def _held(self, frame: Frame) -> HeldChoice:
        index = frame.choice.get("index")
        number = index if isinstance(index, int) else 0
        if number not in self.choices:
            self.choices[number] = HeldChoice(number, self._answering(), released=self._asked.constrained)
        return self.choices[number]

    def _beside(self, event: Event) -> list[Event]:
        """An event that is about no choice goes on at once, unless pieces from before it still wait."""
        if self.broken or not any(one.frames for one in self.choices.values()):
            return [event]
        self._tail.append(event)
        return []

    def _note(self, body: Mapping[str, Any]) -> None:
        self.completion_id = self.completion_id or body.get("id")
        self._upstream = self._upstream or (str(body["model"]) if body.get("model") else None)
        if isinstance(body.get("usage"), dict):
            self.usage = body["usage"]


def _joined(pieces: Sequence[str]) -> str:
    """The text of the pieces. Where one ends in the middle of an escaped character, its halves become the character."""
    return "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _each(event: Event, body: dict[str, Any]) -> list[Frame]:
    """A frame for each choice in an event; in nearly all there is one."""
    choices = body["choices"]
    if len(choices) == 1:
        return [Frame(event, body)]
    # The usage so far would else be counted once for each.
    parts = [{**body, "choices": [one]} | ({"usage": None} if "usage" in body else {}) for one in choices[:-1]]
    return [Frame(Event.of(part), part) for part in (*parts, {**body, "choices": choices[-1:]})]
