"""`aligner-bootstrap demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from aligner_chain.errors import ConfigurationError
from bootstrap.commands.base import add_command, require, say, say_to_stderr


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
    require("demo", "langchain_core", "sqlalchemy", "alembic", "datasketch", "torch", "transformers", "trl", "peft")
    out: Path = arguments.out
    _require_place(out)
    run = _rag_demo if arguments.rag else _rounds_demo
    settings = {"seed": arguments.seed, "out": out, "quick": arguments.quick, "say": say, "progress": True}
    try:
        pages = run(arguments, settings)
    except KeyboardInterrupt:
        if out.exists():
            say_to_stderr(f"\nStopped. What is in {out} is half a demo; remove it before the next:  {_removal(out)}")
        raise
    say(pages)
    say("Your own registry was not touched. To serve this pair:\n")
    say(f"  export ALIGNER_HOME={quote(str((out / 'home').absolute()))}\n")
    return 0


def _require_place(out: Path) -> None:
    """Raises `ConfigurationError` where there is anything that the demo would overwrite."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(
            f"{out} is a file. Name a new folder with --out:  aligner-bootstrap demo --out demo-out"
        )
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is not empty. Name another folder with --out, or remove it:  {_removal(out)}")


def _removal(out: Path) -> str:
    return f"rm -r {quote(str(out))}"


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
