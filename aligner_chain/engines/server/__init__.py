"""The engine on a server: vLLM, or anything that speaks `/v1/completions`. Here there is neither torch nor transformers.

engine        the engine: a queue, and one thread with an event loop
warming       beginnings of prompts that go ahead of the rest, into a server's prefix cache
servers       which of several servers gets a request, and what becomes of it where that one fails
asking        one request of ours as one, two or three of the server's
probing       what a server can do, and whether it runs the model of the checkpoint
endpoints     one server: its health, its attempts, its rest after failures
tokenizing    the checkpoint's tokenizer without transformers
wire          HTTP: options, connections, errors
completions   the protocol: bodies out, answers in
"""

from __future__ import annotations

from aligner_chain.engines.server.engine import ServerEngine, checkpoint_of
from aligner_chain.engines.server.wire import ServerOptions

__all__ = ["ServerEngine", "ServerOptions", "checkpoint_of"]
