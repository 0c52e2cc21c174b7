"""What LlamaIndex's instrumentation is told of each answer that the Aligner sees."""

from __future__ import annotations

from llama_index_instrumentation.base import BaseEvent


class AlignStartEvent(BaseEvent):
    """An answer goes to the Aligner. `passages` is how many go with it."""

    query: str
    answer: str
    passages: int

    @classmethod
    def class_name(cls) -> str:
        return "AlignStartEvent"


class AlignEndEvent(BaseEvent):
    """An answer came back: `corrected` is the text that is served, `duration_s` the seconds that it took."""

    query: str
    answer: str
    corrected: str
    changed: bool
    outcome: str
    reason: str
    correction_id: str
    duration_s: float

    @classmethod
    def class_name(cls) -> str:
        return "AlignEndEvent"
