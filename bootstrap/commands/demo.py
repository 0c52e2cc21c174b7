"""`aligner-bootstrap demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner_chain.errors import ConfigurationError
from bootstrap.commands.base import add_command, say


def add(commands: Any) -> None:
    """Adds `demo`."""
    demo = add_command(
        commands, "demo", "the whole loop on tiny real models", "aligner-bootstrap demo --rounds 2", _demo
    )
    demo.add_argument("--rounds", type=int, help="bootstrap rounds (default 1)")
    demo.add_argument(
        "--rag", action="store_true", help="a LlamaIndex app with retrieval instead: answers against their passages"
    )
    demo.add_argument(
        "--seed", type=int, default=10, help="seed of the world, the models and the sampling (default 10)"
    )
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="an empty or new folder (default demo-out)")
    demo.add_argument("--quick", action="store_true", help="a smaller world and fewer steps; its figures mean nothing")


def _demo(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and any(out.iterdir()):
        message = f"{out} is not empty. Name another folder with --out, or remove it:  rm -r {out}"
        raise ConfigurationError(message)
    run = _rag_demo if arguments.rag else _rounds_demo
    pages = run(arguments, {"seed": arguments.seed, "out": out, "quick": arguments.quick, "say": say, "progress": True})
    say(pages)
    say("Your own registry was not touched. To serve this pair:\n")
    say(f"  export ALIGNER_HOME={(out / 'home').absolute()}\n")
    return 0


def _rounds_demo(arguments: argparse.Namespace, settings: dict[str, Any]) -> str:
    from bootstrap.demo.show import run_demo

    rounds = 1 if arguments.rounds is None else arguments.rounds
    if rounds < 0:
        raise ConfigurationError("--rounds must be 0 or more.")
    figures, out = run_demo(rounds=rounds, **settings), settings["out"]
    return f"{figures['seconds']:.0f} s in all. The figures: {out / 'figures.json'}   The page: {out / 'report.html'}"


def _rag_demo(arguments: argparse.Namespace, settings: dict[str, Any]) -> str:
    from bootstrap.demo.rag_show import run_rag_demo

    if arguments.rounds is not None:
        raise ConfigurationError("--rag runs no rounds: leave out --rounds, or leave out --rag.")
    figures, out = run_rag_demo(**settings), settings["out"]
    return (
        f"{figures['seconds']:.0f} s in all. The figures: {out / 'figures.json'}   The corpus: {out / 'policy.jsonl'}"
    )
