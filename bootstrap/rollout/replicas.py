"""One vLLM as its operator sees it: what it runs, loading and unloading an adapter, and who still asks for one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from aligner_chain.engines.server.wire import ServerOptions, Wire, base_urls, require_httpx

_T = TypeVar("_T")
_USE = re.compile(r"^vllm:lora_requests_info\{(?P<labels>.*)\} (?P<at>\S+)$", re.MULTILINE)
_NAMES = re.compile(r'(?:running|waiting)_lora_adapters="([^"]*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A row of what a server runs: where it was loaded from, as far as the server says, and whether it is an adapter."""

    root: str | None
    adapter: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """Of an adapter: the server's time when a request for it was last seen (0: never), and whether one runs or waits."""

    last: float
    now: bool


class Replica:
    """One server. It belongs to the event loop in which it is used first; every method raises `ServerError`."""

    def __init__(self, url: str, wire: Wire) -> None:
        self.url, self._wire = url, wire

    async def models(self) -> dict[str, Card]:
        """What it runs, by name."""
        said = await self._wire.get(f"{self.url}/models")
        rows = said.get("data") if isinstance(said, dict) else None
        return {str(row.get("id")): _card(row) for row in rows or () if isinstance(row, dict)}

    async def load(self, name: str, folder: str) -> None:
        """Loads the adapter in a folder of the server's under a name that is free."""
        await self._wire.text(f"{self.url}/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    async def unload(self, name: str) -> None:
        """Forgets an adapter's name. vLLM lets requests that it has taken come to their end."""
        await self._wire.text(f"{self.url}/unload_lora_adapter", {"lora_name": name})

    async def use(self, name: str) -> Use | None:
        """Who asks for an adapter; None where the server does not tell."""
        return use_of(await self._wire.text(f"{self.url.removesuffix('/v1')}/metrics"), name)


def use_of(metrics: str, name: str) -> Use | None:
    """Reads vLLM's metrics, which keep the time at which each set of running and waiting adapters was last seen."""
    if "vllm:lora_requests_info" not in metrics:
        return None
    seen = [(float(one["at"]), _names(one["labels"])) for one in _USE.finditer(metrics)]
    newest: tuple[float, set[str]] = max(seen, key=lambda one: one[0], default=(0.0, set()))
    return Use(last=max((at for at, names in seen if name in names), default=0.0), now=name in newest[1])


def with_replicas(urls: Sequence[str], work: Callable[[list[Replica]], Awaitable[_T]]) -> _T:
    """What `work` makes of servers, in an event loop of its own: the caller's thread may have one that runs."""
    require_httpx()

    async def run() -> _T:
        wire = Wire(ServerOptions())
        try:
            return await work([Replica(url, wire) for url in base_urls(urls)])
        finally:
            await wire.close()

    with ThreadPoolExecutor(1, thread_name_prefix="aligner-rollout") as aside:
        return aside.submit(asyncio.run, run()).result()


def _card(row: dict[str, Any]) -> Card:
    root = row.get("root")
    return Card(root=root if isinstance(root, str) else None, adapter=row.get("parent") is not None)


def _names(labels: str) -> set[str]:
    return {name for names in _NAMES.findall(labels) for name in names.split(",")}
