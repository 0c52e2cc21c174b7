"""`aligner-chain serve-check`: what a model server says and does, and whether it serves the Aligner that is meant."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner_chain.aligner import Aligner, described
from aligner_chain.errors import AlignerError
from aligner_chain.exchange import Exchange

if TYPE_CHECKING:
    from aligner_chain.engines.server import ServerEngine

HELP = """\
Asks a server of /v1/completions (vLLM or another) for all that Aligner.from_server needs, and corrects an answer there.
Prints a line for each thing as it is found out. The key, if the server wants one, is taken from ALIGNER_API_KEY.

Exit codes: 0 the Aligner can be used, 1 it cannot, and the last line says why and what to do."""

EXAMPLE = """\
example:
  vllm serve path-to-aligner --served-model-name aligner
  aligner-chain serve-check http://127.0.0.1:8000/v1 --model aligner --checkpoint path-to-aligner"""

PROBE = Exchange.of("Are you open on Sunday?", "We are open from 9 to 5 on Sunday.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at. `ok` is False where the Aligner cannot be used, None where it can do without."""

    name: str
    ok: bool | None
    told: str

    def __str__(self) -> str:
        return f"{self.name:<27} {self.told}"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    command = commands.add_parser(
        "serve-check",
        help="look at a model server that is to run an Aligner",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("url", nargs="+", metavar="URL", help="address of each server, such as http://host:8000/v1")
    command.add_argument("--model", required=True, help="name under which the Aligner is served")
    command.add_argument("--checkpoint", help="its folder or cached hub id (default: the folder that the server names)")
    command.add_argument("--template", help="template of a folder that has no aligner.json")
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    return command


def findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """What is found out, as it is; nothing comes behind the first thing that is not as it should be."""
    try:
        yield from _findings(arguments)
    except AlignerError as error:
        yield Finding(name="problem", ok=False, told=str(error))


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    from aligner_chain.engines.server import ServerEngine, checkpoint_of

    started = time.monotonic()
    with closing(ServerEngine(arguments.url, arguments.model)) as engine:
        answered = f"{len(engine.cards)} of {len(arguments.url)} answered in {_milliseconds(started)}"
        yield Finding(name="reachable", ok=True, told=answered)
        origin = f"loaded from {engine.root}" if engine.root else "the server does not say from where"
        yield Finding(name="model", ok=True, told=f"{engine.model}, {origin}")
        folder = checkpoint_of(engine, arguments.checkpoint)
        metadata, template = described(arguments.checkpoint or folder, folder, arguments.template, None)
        yield Finding(name="checkpoint", ok=True, told=f"{metadata.identity} ({template.name}) in {folder}")
        engine.agree(template, folder)
        yield from _abilities(engine)
        aligner = Aligner(engine, metadata=metadata, template=template, tokenizer=engine.tokenizer)
        yield _correction(aligner)


def _abilities(engine: ServerEngine) -> Iterator[Finding]:
    can, window = engine.abilities, engine.capabilities.window
    yield Finding(name="tokenizer and template", ok=True, told="those of the checkpoint")
    yield Finding(name="window", ok=window is not None or None, told=f"{window or 'not known'} tokens")
    yield _ability("takes token ids", can.ids_in, "yes", "no: prompts are sent as text")
    yield _ability("tells token ids", bool(can.ids_out), f"yes ({can.ids_out})", "no: its text is read again")
    likeliest = f"of the {can.logprobs} likeliest tokens" if can.logprobs else ""
    told = "of any token by name" if can.named else likeliest
    yield _ability("log-probabilities", bool(told), told, "none: no score of a verdict, no strength")
    yield _ability("prompt log-probabilities", can.prompt_logprobs, "yes", "none: no score of a copy")
    yield _ability("streaming", can.stream, "yes", "no: a correction comes as a whole")
    reads = "yes, by its prefix cache"
    yield _ability("reads along", engine.capabilities.overlap, reads, "no: it tells of no prefix cache")


def _ability(name: str, there: bool, told: str, lacking: str) -> Finding:
    return Finding(name=name, ok=there or None, told=told if there else lacking)


def _correction(aligner: Aligner) -> Finding:
    started = time.monotonic()
    [correction] = aligner.correct([PROBE])
    correction.raise_for_failure()
    scores = "".join(f", {name} {value:.3f}" for name, value in correction.scores.items())
    return Finding(name="a correction", ok=True, told=f"{correction.outcome} in {_milliseconds(started)}{scores}")


def _milliseconds(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.0f} ms"
