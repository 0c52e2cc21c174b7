"""The engine in this process: any Hugging Face causal LM, on CUDA when there is one, else on the CPU.

Callers from any thread only put requests into a queue. One worker thread owns the model and lets what waits join the rows
it decodes. It ends when nothing has come for a while, so that an engine nobody holds can be freed.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from aligner_chain.engines.adapters import Adapters
from aligner_chain.engines.base import Capabilities, Request, Ticket
from aligner_chain.engines.loading import load, local_folder
from aligner_chain.engines.queueing import Waiting
from aligner_chain.errors import CapabilityError, ContextOverflowError, EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from aligner_chain.engines.batching import RunningBatch
    from aligner_chain.engines.drafting import CostCurve
    from aligner_chain.engines.padded import PaddedBatch
    from aligner_chain.engines.rows import Row

_log = logging.getLogger(__name__)
_IDLE_S = 5.0
_EXIT_S = 30.0
"""Seconds that the end of the process waits for the step that is running."""
_ENDS = (".", "!", "?", ":", "\n", "Ċ", "<0x0A>")
"""How pieces of a vocabulary end that end a sentence or line; byte-level ones write a line's end in their own way."""
_CPU_MEMORY = 4 * 2**30
"""Bytes for the keys and values of all running rows, where there is no GPU whose free memory would say."""


class HuggingFaceEngine:
    """Decodes up to `max_batch` rows at a time on a causal LM, each drafted from its request's `draft`.

    The model is used as it is (device and dtype) and must not be changed by others while the engine is open. `max_tokens`
    bounds prompts and outputs of all running rows together; None: what fits into four fifths of the GPU's free memory, or
    into 4 GiB on the CPU. More than `max_waiting` requests in the queue are refused, except those of one call that finds
    it empty. `curve` is what a forward costs by its tokens, by which drafts are made long or short; None: it is measured
    when the first draft comes, in about a second at most. `sorted_bytes`, on an x86-64 CPU, is the most memory for a copy of
    the weights in the order that oneDNN multiplies fastest, which stays with the model; None: 2 GiB; 0: torch's own
    products. `packed=False` takes the plain path: padded batches, token by token, without drafts and overlap. A model
    whose attention does not fit the packed path takes the plain one too; `plain_reason` then says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        max_waiting: int = 4096,
        packed: bool = True,
        curve: CostCurve | None = None,
        sorted_bytes: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.max_batch = model.eval(), tokenizer, max_batch
        self.closed = False
        self.plain_reason = _plain_reason(model) if packed else "packed=False"
        if self.plain_reason is None:  # on the plain path rows come in any number, and oneDNN keeps code for each
            _sort_weights(model, sorted_bytes)
        self._eos = _eos_ids(model, tokenizer)
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._window = _window(model)
        self._max_tokens = max_tokens or _fitting_tokens(model)
        self._waiting: Waiting[Row] = Waiting(max_waiting)
        self._adapters = Adapters(model)
        self._chores: list[_Chore] = []
        self._curve = curve
        self._batch: RunningBatch | PaddedBatch | None = None
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._ending = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 64,
    ) -> HuggingFaceEngine:
        """Loads a model folder (also one with a PEFT adapter) or a hub id.

        `device` "auto" is CUDA when there is one, else the CPU; `dtype` "auto" is bf16 on CUDA and fp32 on the CPU.
        A folder is never completed from the network; weights are safetensors; remote code is not run.

        Raises `CheckpointError` for what cannot be loaded and `MissingExtraError` without transformers.
        """
        model, tokenizer = load(path, revision=revision, device=device, dtype=dtype)
        return cls(model, tokenizer, max_batch=max_batch)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            choices=True,
            bias=True,
            score_draft=True,
            adapters=Adapters.possible(),
            stop=True,
            sampling=True,
            deadline=True,
            stream=True,
            overlap=self.plain_reason is None,
            window=self._window,
        )

    @property
    def busy(self) -> bool:
        """Whether there is anything to do: rows that wait, decode, or have something new to read."""
        with self._changed:
            return bool(self._waiting) or (self._batch is not None and self._batch.busy)

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """Queues the requests. One that cannot be run fails its own ticket.

        Raises `CapabilityError` for an adapter that is not there, `OverloadedError` where too much waits already, and `EngineError` after
        `close`.
        """
        tickets = [Ticket(request, changed=self._wake) for request in requests]
        self._enqueue([ticket for ticket in tickets if not self._refused(ticket)])
        return tickets

    def open(self, request: Request) -> Ticket:
        """A ticket whose prompt still grows: what is known of it is read while the upstream writes on.

        Raises `CapabilityError` on the plain path, and for an adapter that is not there.
        """
        if self.plain_reason is not None:
            raise CapabilityError(
                f"This engine cannot read a prompt that still grows ({self.plain_reason}). Submit the whole request."
            )
        ticket = Ticket(request, sealed=False, changed=self._wake, fault=self._fault)
        self._enqueue([ticket])
        return ticket

    def load(self, adapter: str, path: str | Path) -> None:
        """Makes the PEFT adapter in a folder or behind a hub id available to requests, under a name for good.

        It waits for the step that is running. Rows of different adapters are decoded side by side, in forwards of their own.

        Raises `CapabilityError` for a name that is there already, `CheckpointError` for an adapter that does not fit, and
        `MissingExtraError` without PEFT.
        """
        folder = local_folder(path)
        self._own(lambda: self._adapters.load(adapter, folder))

    def unload(self, adapter: str) -> None:
        """Refuses new requests for an adapter, waits for those that run and frees it. Raises `CapabilityError`."""
        with self._changed:
            self._adapters.leave(adapter)
        self._own(lambda: self._remove(adapter), ready=lambda: not self._in_use(adapter))

    def warm_up(self) -> None:
        """Decodes a token that nobody hears of, so that the first request waits for nothing that is made at first use.

        Raises `EngineError` where the model cannot be run.
        """
        self.submit([Request(key="warm-up", prompt=(0,), max_new=1)])[0].result()

    def close(self) -> None:
        """Finishes what was submitted, refuses new requests and frees the model."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        self._batch = None
        self.__dict__.pop("model", None)
        self.__dict__.pop("_adapters", None)

    def abandon(self, timeout: float) -> None:
        """Cancels what was submitted and refuses new requests, for the end of the process.

        Args:
            timeout: seconds to wait for the step that is running.
        """
        with self._changed:
            self.closed = self._ending = True
            self._cancel_all()
            self._changed.notify_all()
            worker = self._worker
        if worker is not None:
            worker.join(timeout)

    def _own(self, work: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        """Has the thread that owns the model do something, and waits for it."""
        chore = _Chore(work, ready)
        with self._changed:
            self._require_open()
            self._chores.append(chore)
        self._wake()
        chore.done.result()

    def _cancel_all(self) -> None:
        for row in self._waiting.all():
            row.ticket.cancelled = True
        if self._batch is not None:
            self._batch.cancel()

    def _in_use(self, adapter: str) -> bool:
        waiting = any(row.ticket.request.adapter == adapter for row in self._waiting.all())
        return waiting or (self._batch is not None and self._batch.uses(adapter))

    def _remove(self, adapter: str) -> None:
        self._adapters.remove(adapter)
        if self._batch is not None:
            self._batch.forget()

    def _require_open(self) -> None:
        if self.closed:
            raise EngineError("The engine is closed. Make a new one with HuggingFaceEngine.from_pretrained.")

    def _enqueue(self, tickets: Sequence[Ticket]) -> None:
        from aligner_chain.engines.rows import Row

        with self._changed:
            self._require_open()
            for ticket in tickets:
                self._adapters.require(ticket.request.adapter)
            self._waiting.add([Row(ticket, self._text) for ticket in tickets])
        self._wake()

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _wake(self) -> None:
        """Tells the worker that something changed, and starts it if it has gone home."""
        with self._changed:
            if self._worker is None and not self.closed:
                self._worker = threading.Thread(target=self._work, name="aligner-chain-engine", daemon=True)
                self._worker.start()
                _working.add(self)
            self._changed.notify_all()

    def _refused(self, ticket: Ticket) -> bool:
        """Fails a ticket whose prompt cannot be run; on a GPU an id out of range would take the process with it."""
        error = self._fault(ticket.request)
        if error is not None and not ticket.future.done():
            ticket.future.set_exception(error)
        return error is not None

    def _fault(self, request: Request) -> EngineError | ContextOverflowError | None:
        prompt, window = request.prompt, self._window
        draft = (*request.draft.lead, *request.draft.ids) if request.draft else ()
        asked = (*prompt, *draft, *request.choices)
        output = max(request.max_new, len(draft) + 1 if request.score_draft else 0)
        if not prompt:
            return EngineError("The request has an empty prompt; this engine needs at least one token.")
        if min(asked) < 0 or max(asked) >= self._vocabulary:
            return EngineError(
                f"The request holds token ids from {min(asked)} to {max(asked)}, the model knows 0 to "
                f"{self._vocabulary - 1}. Was the model resized for its tokenizer "
                "(model.resize_token_embeddings(len(tokenizer)))?"
            )
        if window is not None and len(prompt) + output > window:
            return ContextOverflowError(
                f"Prompt ({len(prompt)} tokens) and output ({output}) need {len(prompt) + output} tokens, but the "
                f"model's window holds {window}. Shorten the conversation or ask for fewer new tokens."
            )
        return None

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while self._run():
                pass

    def _run(self) -> bool:
        """Admits what waits and runs one step. False: there is nothing to do, and the thread ends."""
        import torch

        batch = self._batch = self._batch or self._new_batch()
        with self._changed:
            something = self._changed.wait_for(
                lambda: self._waiting or batch.busy or self.closed or any(chore.ready() for chore in self._chores),
                timeout=_IDLE_S,
            )
            if self.closed:
                batch.close_open()
            chores = [chore for chore in self._chores if chore.ready()]
            if not something or not (self._waiting or batch.rows or chores):
                self._worker = None
                return False
            self._chores = [chore for chore in self._chores if chore not in chores]
            admitted = self._admit(batch)
        for chore in chores:
            chore.do()
        for row in admitted:
            batch.add(row)
        if self._ending:
            self._cancel_all()
        try:
            batch.step()
        except torch.OutOfMemoryError as error:
            self._give_way(batch, error)
        except Exception as error:  # noqa: BLE001  (belongs to these rows; the thread serves the next ones)
            batch.fail(_engine_error(error))
        return True

    def _admit(self, batch: RunningBatch | PaddedBatch) -> list[Row]:
        """The rows that may join: each caller in turn, as many as there is room for."""
        admitted: list[Row] = []
        places, tokens = batch.places, batch.room
        while self._waiting and places > 0:
            row = self._waiting.first()
            if row.room > tokens and batch.rows:
                taken = sum(one.room for one in admitted)
                batch.make_room(row.room + taken)
                tokens = batch.room - taken
            if row.room > tokens and (places < batch.max_rows):
                break
            self._waiting.take()
            if row.admitted():
                admitted.append(row)
                places, tokens = places - row.ticket.sealed, tokens - row.room
        return admitted

    def _give_way(self, batch: RunningBatch | PaddedBatch, error: Exception) -> None:
        """Goes on with fewer rows; the others start anew when there is room."""
        import torch

        rows = batch.give_way()
        if rows is None:
            batch.fail(_engine_error(error))
            return
        with self._changed:
            self._waiting.put_back(rows)
        torch.cuda.empty_cache()

    def _new_batch(self) -> RunningBatch | PaddedBatch:
        from aligner_chain.engines.batching import RunningBatch
        from aligner_chain.engines.padded import PaddedBatch

        if self.plain_reason is not None:
            return PaddedBatch(self.model, eos=self._eos, max_rows=self.max_batch, use=self._adapters.use)
        return RunningBatch(
            self.model,
            eos=self._eos,
            ends=_sentence_ends(self.tokenizer),
            max_rows=self.max_batch,
            max_tokens=self._max_tokens,
            curve=self._curve,
            use=self._adapters.use,
        )


class _Chore:
    """What the thread that owns the model does between two steps, once it is `ready`."""

    def __init__(self, work: Callable[[], None], ready: Callable[[], bool]) -> None:
        self.ready, self._work = ready, work
        self.done: Future[None] = Future()

    def do(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  (raised where the chore was asked for)
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


_Key = tuple[str, str | None, str, str]
_loaded: WeakValueDictionary[_Key, HuggingFaceEngine] = WeakValueDictionary()
_staying: dict[_Key, HuggingFaceEngine] = {}
_working: WeakSet[HuggingFaceEngine] = WeakSet()  # those that have had a worker
_shared_lock = threading.Lock()


def shared_engine(
    path: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto", stays: bool = True
) -> HuggingFaceEngine:
    """The engine of this process for a model, loaded at the first call; objects rebuilt by a framework share it.

    Args:
        path: a folder or hub id.
        revision: of a hub id.
        device: as for `HuggingFaceEngine.from_pretrained`.
        dtype: as there.
        stays: keep it loaded. Else it is the caller's to hold, and to `let_go`.
    """
    folder = Path(path).expanduser()
    key = (str(folder.resolve()) if folder.is_dir() else str(path), revision, device, dtype)
    if (engine := _staying.get(key)) is not None and not engine.closed:
        return engine  # without the lock, which somebody who loads another model may hold for long
    with _shared_lock:
        engine = _loaded.get(key)
        if engine is None or engine.closed:
            engine = HuggingFaceEngine.from_pretrained(path, revision=revision, device=device, dtype=dtype)
        _loaded[key] = engine
        if stays:
            _staying[key] = engine
        return engine


def let_go(engine: HuggingFaceEngine) -> None:
    """Closes a shared engine, unless it stays for somebody else."""
    with _shared_lock:
        if any(engine is one for one in _staying.values()):
            return
        for key in [key for key, one in _loaded.items() if one is engine]:
            del _loaded[key]
    engine.close()


def _after_fork() -> None:
    """A forked child has none of the threads that run the models, and loads its own."""
    global _shared_lock  # noqa: PLW0603  A lock that was taken at the fork stays so.
    _shared_lock = threading.Lock()
    _loaded.clear()
    _staying.clear()
    _working.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _abandon_all() -> None:
    """Python would end a thread that is inside of a forward by unwinding it through C++, and that aborts the process."""
    for engine in list(_working):
        engine.abandon(_EXIT_S)


def _engine_error(cause: Exception) -> EngineError:
    error = EngineError(f"The model failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error


def _plain_reason(model: PreTrainedModel) -> str | None:
    from aligner_chain.engines.packed import prepare

    reason = prepare(model)
    if reason is not None:
        _log.warning("%s is decoded without drafts, since %s.", type(model).__name__, reason)
    return reason


def _sort_weights(model: PreTrainedModel, most: int | None) -> None:
    from aligner_chain.engines import onednn

    onednn.pack(model, onednn.BYTES if most is None else most)


def _fitting_tokens(model: PreTrainedModel) -> int:
    """How many tokens of keys and values there is memory for."""
    import torch

    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * dim * model.dtype.itemsize
    free = torch.cuda.mem_get_info(model.device)[0] * 4 // 5 if model.device.type == "cuda" else _CPU_MEMORY
    return max(1, int(free // each))


def _window(model: PreTrainedModel) -> int | None:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) else None


def _eos_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)


def _sentence_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a sentence or a line, as the vocabulary spells them."""
    return frozenset(token for piece, token in tokenizer.get_vocab().items() if piece.endswith(_ENDS))
