"""Adapters of earlier versions are unloaded when nobody asks for them any more; the last ones stay for a rollback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from aligner_chain.errors import ServerError
from bootstrap.registry import Event, Registry
from bootstrap.rollout.replicas import Replica, with_replicas

GRACE_S = 3.0
"""Seconds in which nobody may ask for an adapter before it is unloaded: some looks of applications at `served.json`."""
PATIENCE_S = 120.0
"""Seconds to wait for that; then it stays, and the next promotion sees to it."""


def retire(registry: Registry, keep: int, grace_s: float, say: Callable[[str], None]) -> None:
    """Unloads the adapters of earlier versions from the servers that were used last. What fails here is only said.

    Args:
        registry: where the present version is served by servers already.
        keep: so many versions that a rollback returns to stay loaded.
        grace_s: seconds without a request for an adapter that must have passed.
        say: hears what was done.
    """
    events = {event.number: event for event in registry.history()}
    old, lately = _spent(events, keep), list(_line(events))[: keep + 2]  # servers of long ago may be gone for good
    urls = list(dict.fromkeys(url for event in lately if event.servers for url in event.servers.urls))
    if not old or not urls:
        return

    async def work(replicas: Sequence[Replica]) -> None:
        for told in await asyncio.gather(*(_retired(one, old, grace_s) for one in replicas)):
            for line in told:
                say(line)

    with_replicas(urls, work)


def _line(events: Mapping[int, Event]) -> Iterator[Event]:
    """The event in force, and those that rollbacks would return to, one after the other."""
    number: int | None = max(events)
    while number is not None:
        yield events[number]
        number = events[number].back


def _spent(events: Mapping[int, Event], keep: int) -> dict[str, set[str]]:
    """The folders, on servers, of the versions that were served before and are not kept, by their names there."""
    kept = list(dict.fromkeys(event.pair.aligner.identity for event in _line(events)))[: keep + 1]
    spent: dict[str, set[str]] = {}
    for event in events.values():
        aligner = event.pair.aligner
        if event.servers and aligner.identity not in kept:
            spent.setdefault(aligner.identity, set()).add(event.servers.folder(aligner))
    return spent


async def _retired(replica: Replica, old: Mapping[str, set[str]], grace_s: float) -> list[str]:
    try:
        there = {name: card for name, card in (await replica.models()).items() if card.adapter}
        names = [name for name, folders in old.items() if name in there and there[name].root in folders]
        return list(await asyncio.gather(*(_unloaded(replica, name, grace_s) for name in names)))
    except ServerError as error:
        return [f"{replica.url} could not be asked for earlier versions: {error}"]


async def _unloaded(replica: Replica, name: str, grace_s: float) -> str:
    try:
        if not await _is_quiet(replica, name, grace_s):
            return (
                f"{name} stays loaded on {replica.url}: requests for it still come, or the server does not tell of them"
            )
        await replica.unload(name)
    except ServerError as error:
        return f"{name} could not be unloaded from {replica.url}: {error}"
    return f"{name} was unloaded from {replica.url}"


async def _is_quiet(replica: Replica, name: str, grace_s: float) -> bool:
    """Waits until nobody has asked for an adapter for a while. False: that did not come, or cannot be known."""
    give_up = time.monotonic() + max(PATIENCE_S, grace_s)
    before = await replica.use(name)
    while before is not None:
        await asyncio.sleep(grace_s)
        now = await replica.use(name)
        if now == before and not now.now:
            return True
        if time.monotonic() > give_up:
            return False
        before = now
    return False
