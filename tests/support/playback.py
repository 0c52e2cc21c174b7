"""An engine of tokens that plays what it is told to, beat by beat, so that a test decides what comes when."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from aligner_chain import Aligner
from aligner_chain.checkpoint import AlignerMetadata
from aligner_chain.engines.base import Capabilities, Generation, Request, Ticket
from aligner_chain.templates import get_template


class Playback:
    """An engine of tokens that plays given ids, one whenever `beats` allows it; `finish` is how it ends."""

    capabilities = Capabilities(choices=True, bias=True, stream=True)

    def __init__(self, ids: Sequence[int], finish: Any = "eos") -> None:
        self.ids, self.finish = ids, finish
        self.beats = threading.Semaphore(0)
        self.tickets: list[Ticket] = []

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        self.tickets = [Ticket(request) for request in requests]
        for ticket in self.tickets:
            threading.Thread(target=self._play, args=[ticket], daemon=True).start()
        return self.tickets

    def load(self, adapter: str, path: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _play(self, ticket: Ticket) -> None:
        ticket.future.set_running_or_notify_cancel()
        for token in self.ids:
            self.beats.acquire()
            if ticket.cancelled:
                break
            if ticket.request.stream:
                ticket.push(token)
        self.beats.acquire()
        finish = "cancelled" if ticket.cancelled else self.finish
        ticket.future.set_result(Generation(key="", ids=tuple(self.ids), finish=finish))


def playing_aligner(
    tokenizer: Any, text: str | None, *criteria: str, finish: Any = "eos", template: str = "aligner-chain/1"
) -> Aligner:
    """An Aligner whose model writes `text` (None: KEEP) and the criteria in the form of the template."""
    chosen = get_template(template)
    *ids, _ = chosen.target(tokenizer, text, criteria)
    metadata = AlignerMetadata(name="playback", version="1", template=template)
    return Aligner(Playback(ids, finish), metadata=metadata, template=chosen, tokenizer=tokenizer)
