"""The engine in this process: any Hugging Face causal LM, on CUDA when there is one, else on the CPU.

Callers from any thread only put requests into a queue. One worker thread owns the model; it takes what waits, decodes it
as a batch and takes again. It ends when nothing has come for a while, so that an engine nobody holds can be freed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain.engines.base import Capabilities, Generation, Request, Ticket
from aligner_chain.engines.loading import load
from aligner_chain.errors import CapabilityError, ContextOverflowError, EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from aligner_chain.engines.decoding import Row

_IDLE_S = 5.0
_SCORED = 2**28
"""Most logits of one scoring forward: rows x draft tokens x vocabulary."""


class HuggingFaceEngine:
    """Decodes batches of up to `max_batch` rows on a causal LM with full or sliding-window attention.

    The model is used as it is (device and dtype) and must not be changed by others while the engine is open.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, *, max_batch: int = 64) -> None:
        self.model, self.tokenizer, self.max_batch = model.eval(), tokenizer, max_batch
        self.closed = False
        self._eos = _eos_ids(model, tokenizer)
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._window = _window(model)
        self._waiting: list[Row] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

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
            sampling=True,
            deadline=True,
            stream=True,
            window=self._window,
        )

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """Queues the requests. One that cannot be run fails its own ticket.

        Raises `CapabilityError` for an adapter and `EngineError` after `close`.
        """
        from aligner_chain.engines.decoding import Row

        if any(request.adapter is not None for request in requests):
            raise CapabilityError(_NO_ADAPTERS)
        tickets = [Ticket(request) for request in requests]
        rows = [Row(ticket) for ticket in tickets if not self._refused(ticket)]
        with self._changed:
            if self.closed:
                raise EngineError("The engine is closed. Make a new one with HuggingFaceEngine.from_pretrained.")
            self._waiting += rows
            if self._worker is None and rows:
                self._worker = threading.Thread(target=self._work, name="aligner-chain-engine", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return tickets

    def load(self, adapter: str, path: Path) -> None:
        """Raises `CapabilityError`: this engine has no adapters to switch between."""
        raise CapabilityError(_NO_ADAPTERS)

    def close(self) -> None:
        """Finishes what was submitted, refuses new requests and frees the model."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        self.__dict__.pop("model", None)

    def _refused(self, ticket: Ticket) -> bool:
        """Fails a ticket whose prompt cannot be run; on a GPU an id out of range would take the process with it."""
        prompt, window = ticket.request.prompt, self._window
        asked = (*prompt, *(ticket.request.draft.ids if ticket.request.draft else ()), *ticket.request.choices)
        needed = len(prompt) + ticket.request.max_new
        error: Exception | None = None
        if not prompt:
            error = EngineError("The request has an empty prompt; this engine needs at least one token.")
        elif min(asked) < 0 or max(asked) >= self._vocabulary:
            error = EngineError(
                f"The request holds token ids from {min(asked)} to {max(asked)}, the model knows 0 to "
                f"{self._vocabulary - 1}. Was the model resized for its tokenizer "
                "(model.resize_token_embeddings(len(tokenizer)))?"
            )
        elif window is not None and needed > window:
            error = ContextOverflowError(
                f"Prompt ({len(prompt)} tokens) and output ({ticket.request.max_new}) need {needed} tokens, but the "
                f"model's window holds {window}. Shorten the conversation or ask for fewer new tokens."
            )
        if error is not None:
            ticket.future.set_exception(error)
        return error is not None

    def _work(self) -> None:
        import torch

        with torch.no_grad():
            while rows := self._take():
                self._run(rows)

    def _take(self) -> list[Row]:
        """The next batch: of what waits the oldest row and those nearest to it in length. Empty: nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.closed, timeout=_IDLE_S)
            if not self._waiting:
                self._worker = None
                return []
            oldest = len(self._waiting[0].request.prompt)
            ordered = sorted(self._waiting, key=lambda row: abs(len(row.request.prompt) - oldest))
            batch = ordered[: self._rows_at_once(ordered)]
            chosen = set(map(id, batch))
            self._waiting = [row for row in self._waiting if id(row) not in chosen]
            return batch

    def _rows_at_once(self, rows: Sequence[Row]) -> int:
        longest = max((len(row.scored) for row in rows[: self.max_batch]), default=0)
        by_memory = _SCORED // ((longest + 1) * self._vocabulary) if longest else self.max_batch
        return max(1, min(self.max_batch, by_memory))

    def _run(self, rows: list[Row]) -> None:
        import torch

        from aligner_chain.engines.decoding import Decoder

        rows = [row for row in rows if row.ticket.future.running() or _admitted(row)]
        try:
            if rows:
                Decoder(self.model, rows, self._eos, _resolve).run()
            return
        except torch.OutOfMemoryError as error:
            failure: Exception = error
        except Exception as error:  # noqa: BLE001  (belongs to these rows; the thread serves the next ones)
            failure = error
        left = [row for row in rows if not row.ticket.future.done()]
        if isinstance(failure, torch.OutOfMemoryError) and len(left) > 1:
            torch.cuda.empty_cache()
            half = len(left) // 2
            self._run(left[:half])
            self._run(left[half:])
            return
        for row in left:
            row.ticket.future.set_exception(_engine_error(failure))


_NO_ADAPTERS = (
    "This engine does not switch between adapters. Load a folder with base and adapter as an engine of its own: "
    "HuggingFaceEngine.from_pretrained(adapter_folder) merges them."
)

_shared: dict[tuple[str, str | None, str, str], HuggingFaceEngine] = {}
_shared_lock = threading.Lock()


def shared_engine(
    path: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> HuggingFaceEngine:
    """The engine of this process for a model, loaded at the first call; objects rebuilt by a framework share it."""
    folder = Path(path).expanduser()
    key = (str(folder.resolve()) if folder.is_dir() else str(path), revision, device, dtype)
    with _shared_lock:
        engine = _shared.get(key)
        if engine is None or engine.closed:
            engine = HuggingFaceEngine.from_pretrained(path, revision=revision, device=device, dtype=dtype)
            _shared[key] = engine
        return engine


def _admitted(row: Row) -> bool:
    """Whether the row is still wanted; from here on a cancelled ticket gets a generation, not an exception."""
    if not row.ticket.future.set_running_or_notify_cancel():
        return False
    if row.interrupted(time.monotonic()):
        _resolve(row, row.generation((), "cancelled" if row.ticket.cancelled else "deadline", forwards=0))
        return False
    return True


def _resolve(row: Row, generation: Generation) -> None:
    row.ticket.future.set_result(generation)


def _engine_error(cause: Exception) -> EngineError:
    error = EngineError(f"The model failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error


def _window(model: PreTrainedModel) -> int | None:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) else None


def _eos_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)
