"""An engine of tokens that plays what it is told to, beat by beat, so that a test decides what comes when."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aligner_chain import Aligner
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Capabilities, Generation, Request, Ticket
from aligner_chain.templates import get_template


class Playback:
    """An engine of tokens that plays given ids, one whenever `beats` allows it; `finish` is how it ends.

    With `overlap` it takes prompts that still grow: `fed` is what it was told of them, `opened` their tickets.
    """

    capabilities = Capabilities(choices=True, bias=True, stream=True)

    def __init__(self, ids: Sequence[int], finish: Any = "eos", **can: Any) -> None:
        self.ids, self.finish = ids, finish
        self.capabilities = replace(Playback.capabilities, **can)
        self.beats = threading.Semaphore(0)
        self.tickets: list[Ticket] = []
        self.submitted: list[Request] = []
        self.opened: list[Ticket] = []
        self.fed: list[tuple[int, ...]] = []

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        self.submitted += requests
        self.tickets = [Ticket(request) for request in requests]
        for ticket in self.tickets:
            self._start(ticket)
        return self.tickets

    def open(self, request: Request) -> Ticket:
        ticket = Ticket(request, sealed=False, changed=lambda: self._changed(ticket))
        self.opened.append(ticket)
        self.tickets = [ticket]
        self._changed(ticket)
        return ticket

    def load(self, adapter: str, path: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _changed(self, ticket: Ticket) -> None:
        if ticket.cancelled:
            return
        if ticket.sealed:
            self._start(ticket)
        else:
            self.fed.append(ticket.request.prompt)

    def _start(self, ticket: Ticket) -> None:
        threading.Thread(target=self._play, args=[ticket], daemon=True).start()

    def _play(self, ticket: Ticket) -> None:
        ticket.future.set_running_or_notify_cancel()
        for token in self.ids:
            self.beats.acquire()
            if ticket.cancelled:
                break
            if ticket.request.stream:
                ticket.push([token])
        self.beats.acquire()
        finish = "cancelled" if ticket.cancelled else self.finish
        ticket.future.set_result(Generation(key="", ids=tuple(self.ids), finish=finish))


def playing_aligner(
    tokenizer: Any, text: str | None, *criteria: str, finish: Any = "eos", template: str = "aligner-chain/1", **can: Any
) -> Aligner:
    """An Aligner whose model writes `text` (None: KEEP) and the criteria in the form of the template.

    `can` changes the capabilities of its engine.
    """
    chosen = get_template(template)
    *ids, _ = chosen.target(tokenizer, text, criteria)
    metadata = AlignerMetadata(name="playback", version="1", template=template)
    return Aligner(Playback(ids, finish, **can), metadata=metadata, template=chosen, tokenizer=tokenizer)


def engine(component: Any) -> Any:
    """The engine behind a component of a face."""
    return component.aligner.engine


def read_by(component: Any) -> str:
    """What the engine behind a component has been told of the prompt by now, as text."""
    fed = engine(component).fed
    return str(component.aligner.tokenizer.decode(fed[-1])) if fed else ""
