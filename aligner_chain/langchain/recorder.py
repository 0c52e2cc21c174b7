"""Remembers which prompt led to which answer, so that `llm | AlignerCorrector()` needs no plumbing.

In LangChain no step is told what its neighbour was asked. But the default of a `ContextVar` that is registered as a
configure hook is seen by every run of the process, whatever its thread, task or callbacks. The recorder is such a
callback handler: it notes the prompt of each model run as plain text and finds it again, by the surest sign there is:

1. the very message object that a run returned;
2. the run id in the id of the message, or of one of its chunks;
3. the provider's message id, if the text is the same too (some servers give every message the same id);
4. the nearest enclosing run under which a model wrote exactly this text;
5. the only prompt asked in the very sequence that the corrector stands in, though the text was changed on the way: it
   must still have half of its words from what the model wrote, and an id that belongs to no other run.

Two different prompts at one level are ambiguous, and an error: the recorder never guesses.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.tracers.context import register_configure_hook

from aligner_chain.exchange import Turn
from aligner_chain.langchain.messages import prompt_not_found, role_of, run_id_of, text_of, upstream_in, worded

INTERNAL_TAG = "aligner:internal"
"""Marks the Aligner's own model runs, which are no answers to anybody's question."""

KEPT_RUNS = 512
"""Finished runs that are remembered once the chain they belong to has ended."""

MOST_RUNS = 50_000
"""Runs that are remembered at all: a batch works step by step, so all its model runs end before the first lookup."""

MOST_LEVELS = 100
"""Runs around a model run that are looked at, so that a caller's repeated run id cannot make an endless circle."""


_Asked = tuple[tuple[str, str], ...]
_WORDS = re.compile(r"\w+")
_OF_A_RUN = ("lc_run-", "run-")
_Key = TypeVar("_Key", int, str)


class PromptRecord(NamedTuple):
    """One model run as text. `ancestors` are the runs around it, the nearest first.

    Runs are known by the number of their UUID, whose hash costs a fraction of the UUID's own; `asked` holds a role and a
    text for each message. This is made in every run of a model, and read in few.
    """

    run: int
    asked: _Asked
    ancestors: tuple[int, ...]
    texts: list[str]
    """What the model wrote, and what correctors made of it."""
    message_ids: tuple[str, ...] = ()
    upstream: str | None = None

    @property
    def run_id(self) -> UUID:
        return UUID(int=self.run)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked; nothing where no user said anything in words."""
        return worded(Turn(role=role, text=text) for role, text in self.asked)


class _Open(NamedTuple):
    """A model run that has not ended. `root` is the outermost chain around it, where its end will be told."""

    asked: _Asked
    ancestors: tuple[int, ...]
    root: int | None


class PromptRecorder(BaseCallbackHandler):
    """Records prompts in bounded memory: text only, never a message object, whose images and owners would live on."""

    run_inline = True  # Else it would wait, under asyncio, for a thread that slow models may all have taken.

    def __init__(self, *, kept_runs: int = KEPT_RUNS, most_runs: int = MOST_RUNS) -> None:
        self.kept_runs, self.most_runs = kept_runs, most_runs
        # Single steps on a dict need no lock. Reentrant, as the death of a message may call back while it is held.
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._parents: dict[int, int | None] = {}  # chains and tools that have not ended
            self._open: dict[int, _Open] = {}
            self._crowded = self.kept_runs  # how many of them make it worth a look whether some were left
            self._runs: dict[int, PromptRecord] = {}
            self._settled: deque[PromptRecord] = deque()  # those of `_runs` whose root has ended
            self._families: dict[int, dict[int, PromptRecord]] = {}  # by the root
            self._named: dict[str, dict[int, PromptRecord]] = {}  # by an id that the provider gave
            # By id(), because messages are not hashable; the reference tells whether it still is the same object.
            self._living: dict[int, tuple[weakref.ref[BaseMessage], tuple[PromptRecord, ...]]] = {}

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
            record = record or self._in_scope(answer, None if parent is None else parent.int)
        if not record.turns:
            raise prompt_not_found("wordless")
        return record

    def being_answered(self, parent: UUID | None, ids: Sequence[str]) -> tuple[Turn, ...]:
        """What the model is asked that writes at this moment; nothing where that is not clear.

        Args:
            parent: the run that the corrector runs in.
            ids: the ids of the chunks that have come.
        """
        started = dict(self._open)
        named = [started[run.int] for run in map(run_id_of, ids) if run and run.int in started]
        below = named or [one for one in started.values() if parent is not None and parent.int in one.ancestors]
        prompts = {one.asked for one in below}
        return worded(Turn(role=role, text=text) for role, text in prompts.pop()) if len(prompts) == 1 else ()

    def rewritten(self, run_id: str | None, text: str) -> None:
        """Notes that the text of a run's answer goes on as another one, so that the next corrector knows it too."""
        record = self._runs.get(UUID(run_id).int) if run_id else None
        if record is not None and text not in record.texts:
            record.texts.append(text)

    def _of_message(self, message: BaseMessage, ids: Sequence[str]) -> PromptRecord | None:
        reference, owners = self._living.get(id(message), (None, ()))
        if reference is not None and reference() is message:
            # A model that returns one object for several prompts leaves its id to the first of them.
            return owners[-1] if len({record.asked for record in owners}) == 1 else None
        for run_id in filter(None, map(run_id_of, (*ids, message.id))):
            if run_id.int in self._runs:
                return self._runs[run_id.int]
        text = text_of(message)
        same = [record for record in self._named.get(message.id or "", {}).values() if text in record.texts]
        return same[-1] if len({record.asked for record in same}) == 1 else None

    def _in_scope(self, answer: BaseMessage | str, parent: int | None) -> PromptRecord:
        lineage, text = self._lineage(parent), text_of(answer)
        family = list(self._families.get(lineage[-1], {}).values()) if lineage else []
        for ancestor in lineage:
            below = [record for record in family if ancestor in record.ancestors]
            found = _only([record for record in below if text in record.texts])
            if found is None and ancestor == parent and (only := _only(below)):
                found = only if only.ancestors[0] == parent and _made_of(answer, only) else None
            if found is not None:
                return found
        raise prompt_not_found("unknown")

    def _lineage(self, run: int | None) -> tuple[int, ...]:
        runs: list[int] = []
        while run is not None and len(runs) < MOST_LEVELS:
            runs.append(run)
            run = self._parents.get(run)
        return tuple(runs)

    def on_chain_start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        self._parents[run_id.int] = None if parent_run_id is None else parent_run_id.int
        if len(self._parents) > self.most_runs:  # Only where chains were abandoned without an end.
            with self._lock:
                self._close(next(iter(self._parents)))

    def on_chain_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self._close(run_id.int)

    on_tool_start = on_chain_start
    on_chain_error = on_tool_end = on_tool_error = on_chain_end

    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        if not tags or INTERNAL_TAG not in tags:
            self._start(tuple([(role_of(message), text_of(message)) for message in messages[0]]), run_id, parent_run_id)

    def on_llm_start(
        self,
        serialized: Any,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        if not tags or INTERNAL_TAG not in tags:
            self._start((("user", prompts[0]),), run_id, parent_run_id)

    def on_llm_error(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self._open.pop(run_id.int, None)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        rows, started = response.generations, self._open.pop(run_id.int, None)
        if started is not None:
            with self._lock:
                generations = rows[0] if len(rows) == 1 else [one for row in rows for one in row]
                self._finish(run_id.int, started.asked, started.ancestors, generations)

    def _start(self, asked: _Asked, run_id: UUID, parent: UUID | None) -> None:
        ancestors = self._lineage(parent.int) if parent is not None else ()
        root = ancestors[-1] if ancestors and ancestors[-1] in self._parents else None
        self._open[run_id.int] = _Open(asked, ancestors, root)
        if len(self._open) > self._crowded:
            with self._lock:
                self._drop_left()
        if len(self._open) > self.most_runs:
            with self._lock:
                self._open.pop(next(iter(self._open)))

    def _drop_left(self) -> None:
        """Forgets model runs that their chain has left: LangChain tells nothing of the end of one that was cancelled."""
        for run, left in list(self._open.items()):
            if left.root is not None and left.root not in self._parents:
                self._open.pop(run, None)
        # Doubled, so that many runs at once cost no look at all of them each time.
        self._crowded = max(self.kept_runs, 2 * len(self._open))

    def _finish(self, run: int, asked: _Asked, ancestors: tuple[int, ...], generations: Sequence[Generation]) -> None:
        messages = [generation.message for generation in generations if isinstance(generation, ChatGeneration)]
        record = PromptRecord(
            run,
            asked,
            ancestors,
            [generation.text for generation in generations],
            # An id that LangChain made of the run's needs no index of its own.
            tuple([message.id for message in messages if message.id and not message.id.startswith(_OF_A_RUN)]),
            upstream_in(messages[0].response_metadata) if messages else None,
        )
        self._runs[run] = record
        if ancestors:
            self._families.setdefault(ancestors[-1], {})[run] = record
        for message_id in record.message_ids:
            self._named.setdefault(message_id, {})[run] = record
        for message in messages:
            self._keep_while_alive(message, record)
        if not ancestors or ancestors[-1] not in self._parents:
            self._settle(record)
        if len(self._runs) > self.most_runs:
            self._forget(next(iter(self._runs.values())))

    def _keep_while_alive(self, message: BaseMessage, record: PromptRecord) -> None:
        key, living = id(message), self._living

        def forget(dead: weakref.ref[BaseMessage]) -> None:
            if living.get(key, (None,))[0] is dead:
                living.pop(key, None)

        before = living.get(key)
        if before is None or before[0]() is not message:
            living[key] = (weakref.ref(message, forget), (record,))
        else:  # Two prompts are as ambiguous as many, so no more of them are kept.
            living[key] = (before[0], (before[1][-1], record))

    def _close(self, run: int) -> None:
        # Before the look at the family, because `_finish` looks the other way round: one of them sees the other.
        self._parents.pop(run, None)
        if run in self._families:
            with self._lock:
                for record in list(self._families.get(run, {}).values()):
                    self._settle(record)

    def _settle(self, record: PromptRecord) -> None:
        self._settled.append(record)
        if len(self._settled) > self.kept_runs:
            self._forget(self._settled.popleft())

    def _forget(self, record: PromptRecord) -> None:
        self._runs.pop(record.run, None)
        if record.ancestors:
            _drop(self._families, record.ancestors[-1], record)
        for message_id in record.message_ids:
            _drop(self._named, message_id, record)


def _only(records: Sequence[PromptRecord]) -> PromptRecord | None:
    """The last of the records, if all were asked the same."""
    if len({record.asked for record in records}) > 1:
        raise prompt_not_found("ambiguous")
    return records[-1] if records else None


def _made_of(answer: BaseMessage | str, record: PromptRecord) -> bool:
    """Whether an answer can be what became of a run's: half of its words are from there, and no id says otherwise."""
    if isinstance(answer, BaseMessage) and answer.id and answer.id not in record.message_ids:
        return False
    words = set(_WORDS.findall(text_of(answer).casefold()))
    said = set(_WORDS.findall(" ".join(record.texts).casefold()))
    return 2 * len(words & said) >= len(words) > 0


def _drop(index: dict[_Key, dict[int, PromptRecord]], key: _Key, record: PromptRecord) -> None:
    entries = index.get(key, {})
    entries.pop(record.run, None)
    if not entries:
        index.pop(key, None)


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
