"""A version on every server, or on none: loaded where it is an adapter, then asked for a correction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import PurePosixPath

from aligner_chain.aligner import Aligner
from aligner_chain.engines.loading import ADAPTER
from aligner_chain.errors import AlignerError, ServerError
from bootstrap.errors import RolloutError
from bootstrap.registry import Registry, Servers, Version
from bootstrap.rollout.replicas import Replica, with_replicas

_LOG = logging.getLogger(__name__)


@contextmanager
def ready(registry: Registry, version: Version, servers: Servers) -> Iterator[None]:
    """Has every server run a version while the block serves it; where either fails, unloads what was loaded for it.

    Raises:
        RolloutError: a server cannot be reached, cannot load the version, or runs another one.
    """
    loaded: list[str] = []
    try:
        with_replicas(servers.urls, lambda replicas: _have(replicas, version, servers, loaded))
        _probe(version, servers)
        yield
    except BaseException:
        # What failed may be the last step, after the registry has recorded it; then the servers must keep it.
        event = registry.event()
        if loaded and not (event and event.servers and event.pair.aligner.number == version.number):
            with_replicas(loaded, lambda replicas: _take_back(replicas, version))
        raise


async def _have(replicas: Sequence[Replica], version: Version, servers: Servers, loaded: list[str]) -> None:
    """Loads a version wherever it is not; `loaded` gets the servers that may have it because of that."""
    done = await asyncio.gather(*(_has(one, version, servers, loaded) for one in replicas), return_exceptions=True)
    for replica, error in zip(replicas, done, strict=True):
        if isinstance(error, AlignerError):
            raise _failed(version, replica.url, error) from error
        if error is not None:
            raise error


async def _has(replica: Replica, version: Version, servers: Servers, loaded: list[str]) -> None:
    there = (await replica.models()).get(version.identity)
    folder = servers.folder(version)
    if there is not None:
        _require_same(there.root, folder, version)
        return
    if not (version.path / ADAPTER).exists():
        raise RolloutError(
            f"it has no model of that name, and {version.identity} is a whole model, which needs a server of its own. Start "
            f"one:  vllm serve {folder} --served-model-name {version.identity}\n"
            "and promote the pair to it:  aligner-bootstrap promote PAIR --server URL"
        )
    loaded.append(replica.url)  # before it answers: of a load without an answer nobody knows
    try:
        await replica.load(version.identity, folder)
    except ServerError as error:
        if error.status is None:
            raise
        loaded.remove(replica.url)
        raise RolloutError(
            f"{error}\nvLLM must be started for it:  VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora "
            f"--max-lora-rank RANK\nand must find {folder} ; where it sees the registry elsewhere, say where: "
            "--path-on-server FOLDER"
        ) from error


def _require_same(root: str | None, folder: str, version: Version) -> None:
    """Raises `RolloutError` where a server says that a name was loaded from another folder than the version's."""
    told, meant = PurePosixPath(root or folder).parts, PurePosixPath(folder).parts
    if meant[-len(told) :] != told:
        raise RolloutError(
            f"it loaded {version.identity} from {root} and not from {folder}. If that is the same folder, say where the server "
            "sees the registry: --path-on-server FOLDER ; if not, the name must go first."
        )


def _probe(version: Version, servers: Servers) -> None:
    """Has each server correct an answer, as an application would; so it is warm as well."""

    def probe(url: str) -> None:
        try:
            with closing(Aligner.from_server(url, version.identity, checkpoint=version.path)) as aligner:
                aligner.warm_up()
        except AlignerError as error:
            raise _failed(version, url, error) from error

    with ThreadPoolExecutor(len(servers.urls)) as pool:
        list(pool.map(probe, servers.urls))


async def _take_back(replicas: Sequence[Replica], version: Version) -> None:
    done = await asyncio.gather(*(one.unload(version.identity) for one in replicas), return_exceptions=True)
    for replica, error in zip(replicas, done, strict=True):
        if isinstance(error, ServerError) and error.status != 404:
            _LOG.warning("%s may still have %s loaded: %s", replica.url, version.identity, error)
        elif isinstance(error, BaseException) and not isinstance(error, ServerError):
            raise error


def _failed(version: Version, url: str, error: AlignerError) -> RolloutError:
    key = "\nSet the key of the servers:  export ALIGNER_API_KEY=..."
    refused = isinstance(error, ServerError) and error.status in (401, 403)
    return RolloutError(
        f"{version.identity} is not ready on {url}: {error}{key if refused else ''}\n"
        "What is served is as it was, and what was loaded for this is unloaded."
    )
