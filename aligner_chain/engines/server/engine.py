"""The engine on a server: vLLM, or anything that speaks `/v1/completions`. Here there is neither torch nor transformers.

Callers from any thread only put requests into a queue. One thread runs an event loop that talks to the servers, so that
many requests wait at once over one pool of connections.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Coroutine, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aligner_chain.engines.base import Capabilities, Request, Ticket
from aligner_chain.engines.queueing import Waiting
from aligner_chain.engines.server.asking import CERTAIN, Asking
from aligner_chain.engines.server.completions import Abilities
from aligner_chain.engines.server.endpoints import Endpoint
from aligner_chain.engines.server.servers import Checkpoint, Servers
from aligner_chain.engines.server.tokenizing import FastTokenizer, checkpoint_folder
from aligner_chain.engines.server.warming import Warming
from aligner_chain.engines.server.wire import ServerOptions, Wire, base_urls, require_httpx
from aligner_chain.errors import (
    AlignerError,
    CapabilityError,
    CheckpointError,
    ContextOverflowError,
    EngineError,
    OverloadedError,
)
from aligner_chain.templates import CorrectionTemplate

_T = TypeVar("_T")


class ServerEngine:
    """Corrects at one server, or at several that serve the same model.

    Made, it knows what each server says of the model; `agree` then finds out what they do, and that they run the model of
    the checkpoint. One that cannot be reached then is looked at when it is back, as long as another one is there.

    Raises `ConfigurationError` for what is no address, `ServerMismatchError` for a model that is not served, `ServerError`
    where no server can be reached, and `MissingExtraError` without httpx.
    """

    def __init__(self, url: str | Sequence[str], model: str, options: ServerOptions | None = None) -> None:
        require_httpx()
        self.model, self.options, self.closed = model, options or ServerOptions(), False
        self._urls = base_urls(url)
        self._window: int | None = None
        self._start()
        try:
            self.cards = self._run(self._servers.cards())
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ServerEngine({', '.join(self._urls)}, model={self.model!r})"

    @property
    def root(self) -> str | None:
        """The folder or hub id that a server says it loaded the model from."""
        return next((one.root for one in self.cards if one.root), None)

    @property
    def tokenizer(self) -> FastTokenizer:
        """The checkpoint's. Raises `CapabilityError` before `agree`."""
        return self._servers.checkpoint.tokenizer

    @property
    def abilities(self) -> Abilities:
        """What all servers do that were looked at. Raises `CapabilityError` before `agree`."""
        return self._servers.abilities

    @property
    def capabilities(self) -> Capabilities:
        can, verdict = self.abilities, self._servers.checkpoint.template.verdict
        tells = can.named or can.logprobs > 0
        return Capabilities(
            choices=verdict and tells,
            bias=verdict and tells,
            score_draft=can.prompt_logprobs and can.ids_in and tells,
            deadline=True,
            stream=can.stream,
            overlap=self._warms,
            window=self._window,
        )

    def agree(self, template: CorrectionTemplate, folder: Path) -> None:
        """Has every server show what it does, and that it runs the model of the checkpoint in a folder.

        Raises `ServerMismatchError` for another tokenizer or template, `CapabilityError` where the template needs more
        than the server does, `ServerError` where none can be reached, and `CheckpointError` for what cannot be read.
        """
        checkpoint = Checkpoint.read(template, folder)
        windows = [one.window for one in self.cards if one.window is not None]
        self._window = self.options.window or min(windows, default=None) or checkpoint.window
        self._run(self._servers.agree(checkpoint))
        if self.options.prefix_block is not None:
            self._servers.prefix_block = self.options.prefix_block
        elif self.options.warm_every:
            self._run(self._servers.find_prefix_block())

    def submit(self, requests: Sequence[Request]) -> Sequence[Ticket]:
        """Queues the requests. One that cannot be run fails its own ticket.

        Raises `CapabilityError` for what servers do not do, `OverloadedError` where too much waits already, and
        `EngineError` after `close`.
        """
        for request in requests:
            if (lacking := self._lacking(request)) is not None:
                raise lacking
        self._require_open()
        rows = [_Row(self._ticket(request)) for request in requests]
        for row in rows:
            if (error := self._fault(row.ticket.request)) is not None:
                row.ticket.future.set_exception(error)
        with self._lock:
            self._waiting.add([row for row in rows if not row.ticket.future.done()])
        self._loop.call_soon_threadsafe(self._dispatch)
        return [row.ticket for row in rows]

    def open(self, request: Request) -> Ticket:
        """A ticket whose prompt still grows: what is known of it goes ahead of the rest, into a server's prefix cache.

        Raises `CapabilityError` where there is no such cache that is known of, and `EngineError` after `close`.
        """
        if not self._warms:
            raise CapabilityError(
                f"The server of {self.model} cannot read a prompt that still grows: it does not say that it has a prefix "
                "cache. If it has one: ServerOptions(prefix_block=16), with the tokens in its blocks."
            )
        self._require_open()
        pid = os.getpid()

        def fault(request: Request) -> AlignerError | None:
            if self.closed or os.getpid() != pid:
                return EngineError("The engine is closed, or in another process than the one that began this prompt.")
            return self._lacking(request) or self._fault(request)

        ticket = self._ticket(request, sealed=False, fault=fault)
        self._loop.call_soon_threadsafe(self._warming.begin, ticket)
        return ticket

    def load(self, adapter: str, path: Path) -> None:
        """Raises `CapabilityError`: which adapters there are is the server's business."""
        raise CapabilityError(
            "A server loads its own adapters. Start it with the adapter under a name (vllm serve BASE --enable-lora "
            '--lora-modules NAME=FOLDER), and name it: Aligner.from_server(url, model="NAME", checkpoint=...).'
        )

    def unload(self, adapter: str) -> None:
        """Raises `CapabilityError`, as `load` does."""
        raise CapabilityError("A server unloads its own adapters.")

    def close(self) -> None:
        """Finishes what was submitted, refuses new requests and closes the connections. The servers run on."""
        if not self.closed:
            self.closed = True
            self._run(self._drained())
            self._stop()

    def _start(self) -> None:
        """Starts the thread that talks to the servers, with nothing to do yet."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._waiting: Waiting[_Row] = Waiting(self.options.max_waiting)
        self._tasks: dict[Ticket, asyncio.Task[None]] = {}
        self._loop, self._servers = asyncio.new_event_loop(), Servers(self._urls, self.model, self.options)
        busy = partial(_busy, self._lock, self._tasks, self._waiting)
        self._warming = Warming(self._servers, self.options, busy)
        thread = threading.Thread(
            target=_talk, args=(self._loop, self._servers.wire), name="aligner-chain-server", daemon=True
        )
        thread.start()
        # An engine that nobody holds any more stops its thread.
        self._stop = weakref.finalize(self, _quiet, self._loop, thread)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _require_open(self) -> None:
        if self.closed:
            raise EngineError("The engine is closed. Make a new Aligner with Aligner.from_server.")
        if self._pid != os.getpid():
            # A forked child has none of its parent's threads, and must not share its connections.
            self._stop.detach()
            before = self._servers
            self._start()
            self._servers.take_over(before)

    def _ticket(self, request: Request, **how: Any) -> Ticket:
        loop = self._loop

        def changed() -> None:
            with suppress(RuntimeError):  # the loop is closed, and with it went what there was to change
                loop.call_soon_threadsafe(self._changed, ticket)

        ticket = Ticket(request, changed=changed, **how)
        return ticket

    @property
    def _warms(self) -> bool:
        return bool(self.options.warm_every and self._servers.prefix_block and self.abilities.ids_in)

    def _lacking(self, request: Request) -> CapabilityError | None:
        can = self.capabilities
        asked = {
            "choices": request.choices and not can.choices,
            "bias": any(nats < CERTAIN for nats in request.bias.values()) and not can.bias,
            "score_draft": request.score_draft and not can.score_draft,
            "stream": request.stream and not can.stream,
            "adapter": request.adapter is not None,
            "stop": request.stop,
            "sampling": request.sampling.temperature > 0,
        }
        if wrong := [name for name, value in asked.items() if value]:
            return CapabilityError(
                f"The server of {self.model} cannot do {', '.join(wrong)}. aligner-chain serve-check tells what it does; "
                "vLLM does most."
            )
        return None

    def _fault(self, request: Request) -> EngineError | ContextOverflowError | None:
        draft = (*request.draft.lead, *request.draft.ids) if request.draft else ()
        output = max(request.max_new, len(draft) + 1 if request.score_draft else 0)
        if not request.prompt:
            return EngineError("The request has an empty prompt; a server needs at least one token.")
        if self._window is not None and len(request.prompt) + output > self._window:
            return ContextOverflowError(
                f"Prompt ({len(request.prompt)} tokens) and output ({output}) need {len(request.prompt) + output} tokens, "
                f"but the model's window holds {self._window}. Shorten the conversation, or start the server with a longer "
                "one (--max-model-len)."
            )
        return None

    # What follows runs in the thread of the event loop.

    def _dispatch(self) -> None:
        """Starts what waits, as far as there is room."""
        while len(self._tasks) < self.options.concurrency:
            with self._lock:
                if not self._waiting:
                    return
                row = self._waiting.first()
                self._waiting.take()
            self._tasks[row.ticket] = task = self._loop.create_task(self._served(row))
            task.add_done_callback(partial(self._left, row.ticket))

    def _left(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        del self._tasks[ticket]
        self._dispatch()

    def _changed(self, ticket: Ticket) -> None:
        """Hears that a ticket was fed, sealed or cancelled."""
        if ticket.cancelled:
            self._warming.drop(ticket)
            if (task := self._tasks.get(ticket)) is not None:
                task.cancel()
        elif ticket.sealed:
            self._admit(ticket)
        else:
            self._warming.grow(ticket)

    def _admit(self, ticket: Ticket) -> None:
        """Queues a prompt that grew until now. What is wrong with it is told by its `seal`."""
        if ticket not in self._warming:
            return
        row = _Row(ticket, self._warming.end(ticket))
        if ticket.future.done() or self._lacking(ticket.request) or self._fault(ticket.request):
            return
        try:
            with self._lock:
                self._waiting.add([row])
        except OverloadedError as error:
            ticket.future.set_exception(error)
        else:
            self._dispatch()

    async def _served(self, row: _Row) -> None:
        ticket = row.ticket
        if not ticket.future.set_running_or_notify_cancel():
            return
        servers = self._servers
        ask = partial(servers.answered, near=row.near)
        asking = Asking(ticket, ask, servers.checkpoint.ends, servers.checkpoint.tokenizer)
        try:
            async with asyncio.timeout_at(row.deadline(self._loop.time())):
                generation = await asking.generation()
        except TimeoutError:
            generation = asking.broken_off("deadline")
        except asyncio.CancelledError:
            generation = asking.broken_off("cancelled")
        except Exception as error:  # noqa: BLE001  (belongs to this ticket; the thread serves the next ones)
            ticket.future.set_exception(_as_ours(error))
            return
        ticket.future.set_result(generation)

    async def _drained(self) -> None:
        for ticket in self._warming.close():
            if not ticket.future.done():
                ticket.future.set_exception(EngineError("The engine was closed while the answer still grew."))
        while self._tasks:
            await asyncio.wait(self._tasks.values())


def checkpoint_of(engine: ServerEngine, checkpoint: str | Path | None) -> Path:
    """The folder of the checkpoint that a server runs. Raises `CheckpointError` where it is not here."""
    if checkpoint is not None:
        return checkpoint_folder(checkpoint)
    if engine.root is not None and Path(engine.root).is_dir():
        return Path(engine.root)
    told = (
        f"The server loaded {engine.model} from {engine.root}"
        if engine.root
        else f"The server does not say where {engine.model} is"
    )
    raise CheckpointError(
        f"{told}, which is no folder here; but the tokenizer and aligner.json are needed here too. Pass a folder that holds "
        "them (no weights), or the hub id once they are in the local cache: "
        f'Aligner.from_server(url, model="{engine.model}", checkpoint="folder-or-hub-id").'
    )


@dataclass(slots=True, eq=False)
class _Row:
    """A ticket that waits, the server that read the beginning of its prompt, and when it began to wait."""

    ticket: Ticket
    near: Endpoint | None = None
    born: float = field(default_factory=time.monotonic)

    def deadline(self, now: float) -> float | None:
        """Its deadline on the loop's clock, on which it is `now`."""
        seconds = self.ticket.request.deadline_s
        return None if seconds is None else now + seconds - (time.monotonic() - self.born)


def _busy(lock: threading.Lock, tasks: Sized, waiting: Sized) -> int:
    with lock:
        return len(tasks) + len(waiting)


def _talk(loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(wire.close())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _quiet(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()


def _as_ours(error: Exception) -> AlignerError:
    if isinstance(error, AlignerError):
        return error
    ours = EngineError(f"The engine failed: {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
