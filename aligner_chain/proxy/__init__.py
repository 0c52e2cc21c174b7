"""An OpenAI-compatible endpoint in front of any other one, which corrects the answers on their way to the client.

    aligner-chain serve --upstream https://api.openai.com/v1 --aligner path-or-hub-id

or, from code, `serve(Settings(upstream=..., aligner=...))`; `create_app(settings)` is the same as an ASGI application.

    client -> guard -> chat -> upstream          guard: limits, disconnects, the access log, metrics
                         |                       chat: one request; asking reads it, answers reads what came back
                         +-> correcting          streams: what is held of a stream until it was checked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner_chain.proxy.app import create_app
    from aligner_chain.proxy.command import serve
    from aligner_chain.proxy.settings import Settings

__all__ = ["Settings", "create_app", "serve"]

_ROOMS = {"Settings": "settings", "create_app": "app", "serve": "command"}


def __getattr__(name: str) -> Any:
    """The public names, so that the command line can read a setting's default without loading a server."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
