"""Remembers which prompt led to which answer, so that `llm | AlignerCorrector()` needs no plumbing.

In LangChain no step is told what its neighbour was asked. But the default of a `ContextVar` that is registered as a
configure hook is seen by every run of the process, whatever its thread, task or callbacks. The recorder is such a
callback handler: it notes the prompt of each model run as plain text and finds it again, by the surest sign there is:

1. the very message object that a run returned;
2. the run id in the id of the message, or of one of its chunks;
3. the provider's message id, if the text is the same too (some servers give every message the same id);
4. the nearest enclosing run under which a model wrote exactly this text;
5. the only prompt asked in the sequence that the corrector stands in, though the text was changed on the way.

Two different prompts at one level are ambiguous, and an error: the recorder never guesses.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.tracers.context import register_configure_hook

from aligner_chain.exchange import Turn
from aligner_chain.langchain.messages import known_turns, prompt_not_found, run_id_of, text_of, upstream_in

INTERNAL_TAG = "aligner:internal"
"""Marks the Aligner's own model runs, which are no answers to anybody's question."""

KEPT_RUNS = 512
"""Finished runs that are remembered once the chain they belong to has ended."""

MOST_RUNS = 50_000
"""Runs that are remembered at all: a batch works step by step, so all its model runs end before the first lookup."""

MOST_LEVELS = 100
"""Runs around a model run that are looked at, so that a caller's repeated run id cannot make an endless circle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """One model run as text. `ancestors` are the runs around it, the nearest first."""

    run_id: UUID
    turns: tuple[Turn, ...]
    ancestors: tuple[UUID, ...]
    texts: tuple[str, ...] = ()
    message_ids: tuple[str, ...] = ()
    upstream: str | None = None

    @property
    def keys(self) -> tuple[UUID | str, ...]:
        """What the record is found by."""
        return self.ancestors + self.message_ids


class PromptRecorder(BaseCallbackHandler):
    """Records prompts in bounded memory: text only, never a message object, whose images and owners would live on."""

    run_inline = True  # Else it would wait, under asyncio, for a thread that slow models may all have taken.

    def __init__(self, *, kept_runs: int = KEPT_RUNS, most_runs: int = MOST_RUNS) -> None:
        self.kept_runs, self.most_runs = kept_runs, most_runs
        # Reentrant, because the death of a message may call back while this thread holds it.
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._parents: OrderedDict[UUID, UUID | None] = OrderedDict()  # chains and tools that have not ended
            self._open: OrderedDict[UUID, PromptRecord] = OrderedDict()  # model runs that have not ended
            self._runs: OrderedDict[UUID, PromptRecord] = OrderedDict()
            self._settled: OrderedDict[UUID, PromptRecord] = OrderedDict()  # those of `_runs` whose root has ended
            self._index: dict[UUID | str, dict[UUID, PromptRecord]] = {}  # by each ancestor and each message id
            # By id(), because messages are not hashable; the reference tells whether it still is the same object.
            self._living: dict[int, tuple[weakref.ref[BaseMessage], PromptRecord]] = {}

    def counts(self) -> dict[str, int]:
        """How much is remembered: chains and model runs in progress, finished runs, messages still alive."""
        with self._lock:
            finished = {"runs": len(self._runs), "living": len(self._living)}
            return {"chains": len(self._parents), "open": len(self._open), **finished}

    def __deepcopy__(self, memo: object) -> PromptRecorder:
        return self  # A copied config must still write into the one recorder of the process.

    def find(self, answer: BaseMessage | str, parent: UUID | None, ids: Sequence[str] = ()) -> PromptRecord:
        """The run that gave this answer.

        Args:
            answer: a message, or the text that is left of one.
            parent: the run that the corrector runs in.
            ids: the ids of the chunks that the message was merged from.

        Raises:
            PromptNotFoundError: no run qualifies, or several with different prompts do.
        """
        with self._lock:
            record = self._of_message(answer, ids) if isinstance(answer, BaseMessage) else None
            record = record or self._in_scope(text_of(answer), parent)
        if not record.turns:
            raise prompt_not_found("wordless")
        return record

    def _of_message(self, message: BaseMessage, ids: Sequence[str]) -> PromptRecord | None:
        reference, record = self._living.get(id(message), (None, None))
        if reference is not None and reference() is message:
            return record
        for run_id in filter(None, map(run_id_of, (*ids, message.id))):
            if run_id in self._runs:
                return self._runs[run_id]
        text = text_of(message)
        same = [record for record in self._index.get(message.id or "", {}).values() if text in record.texts]
        return same[-1] if len({record.turns for record in same}) == 1 else None

    def _in_scope(self, text: str, parent: UUID | None) -> PromptRecord:
        for ancestor in self._lineage(parent):
            family = self._index.get(ancestor, {}).values()
            candidates: Collection[PromptRecord] = [record for record in family if text in record.texts]
            if not candidates and ancestor == parent:
                candidates = family
            if len({record.turns for record in candidates}) > 1:
                raise prompt_not_found("ambiguous")
            if candidates:
                return list(candidates)[-1]
        raise prompt_not_found("unknown")

    def _lineage(self, run_id: UUID | None) -> Iterator[UUID]:
        for _ in range(MOST_LEVELS):
            if run_id is None:
                return
            yield run_id
            run_id = self._parents.get(run_id)

    def on_chain_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        with self._lock:
            self._parents[run_id] = parent_run_id
            if len(self._parents) > self.most_runs:  # Only where chains were abandoned without an end.
                self._close(next(iter(self._parents)))

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        with self._lock:
            self._close(run_id)

    on_tool_start = on_chain_start
    on_chain_error = on_tool_end = on_tool_error = on_chain_end

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **run: Any) -> None:
        self._start(known_turns(messages[0]), **run)

    def on_llm_start(self, serialized: Any, prompts: list[str], **run: Any) -> None:
        self._start((Turn(role="user", text=prompts[0]),), **run)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        with self._lock:
            self._open.pop(run_id, None)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        with self._lock:
            if started := self._open.pop(run_id, None):
                self._finish(started, [generation for row in response.generations for generation in row])

    def _start(
        self,
        turns: tuple[Turn, ...],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        if INTERNAL_TAG in (tags or ()):
            return
        with self._lock:
            ancestors = tuple(self._lineage(parent_run_id))
            self._open[run_id] = PromptRecord(run_id=run_id, turns=turns, ancestors=ancestors)
            if len(self._open) > self.most_runs:
                self._open.popitem(last=False)

    def _finish(self, started: PromptRecord, generations: list[Generation]) -> None:
        messages = [generation.message for generation in generations if isinstance(generation, ChatGeneration)]
        record = replace(
            started,
            texts=tuple(generation.text for generation in generations),
            message_ids=tuple(message.id for message in messages if message.id),
            upstream=next((upstream_in(message.response_metadata) for message in messages), None),
        )
        self._runs[record.run_id] = record
        for key in record.keys:
            self._index.setdefault(key, {})[record.run_id] = record
        for message in messages:
            self._keep_while_alive(message, record)
        if not record.ancestors or record.ancestors[-1] not in self._parents:
            self._settle(record)
        if len(self._runs) > self.most_runs:
            self._forget(next(iter(self._runs.values())))

    def _keep_while_alive(self, message: BaseMessage, record: PromptRecord) -> None:
        key, living = id(message), self._living

        def forget(dead: weakref.ref[BaseMessage]) -> None:
            if living.get(key, (None,))[0] is dead:
                living.pop(key, None)

        living[key] = (weakref.ref(message, forget), record)

    def _close(self, run_id: UUID) -> None:
        self._parents.pop(run_id, None)
        for record in list(self._index.get(run_id, {}).values()):
            if record.ancestors[-1] == run_id:
                self._settle(record)

    def _settle(self, record: PromptRecord) -> None:
        self._settled[record.run_id] = record
        while len(self._settled) > self.kept_runs:
            self._forget(next(iter(self._settled.values())))

    def _forget(self, record: PromptRecord) -> None:
        self._runs.pop(record.run_id, None)
        self._settled.pop(record.run_id, None)
        for key in record.keys:
            entries = self._index.get(key, {})
            entries.pop(record.run_id, None)
            if not entries:
                self._index.pop(key, None)


def recorder() -> PromptRecorder:
    """The recorder of this process; the first call puts it to work."""
    with _INSTALLING:
        if not _HOOK:
            _HOOK.append(ContextVar("aligner_chain_recorder", default=_RECORDER))
            # Inheritable, because LangGraph hands its callback manager to its nodes without configuring it anew.
            register_configure_hook(_HOOK[0], inheritable=True)
    return _RECORDER


_RECORDER = PromptRecorder()
_INSTALLING = threading.Lock()
_HOOK: list[ContextVar[Any]] = []
