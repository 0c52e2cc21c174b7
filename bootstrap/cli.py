"""The command `aligner-bootstrap`: the demo, training an Aligner, rounds, and what the registry serves.

Exit codes: 0 all went well, 1 a stage failed, 2 wrong usage or setup, 3 a gate refused the candidate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner_chain import __version__
from aligner_chain.errors import AlignerError, ConfigurationError
from bootstrap.errors import BootstrapError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` defaults to the process's arguments."""
    arguments = _parser().parse_args(argv)
    _quiet_libraries()
    try:
        return int(arguments.run(arguments))
    except BootstrapError as error:
        print(f"aligner-bootstrap: {error}", file=sys.stderr)
        return 1
    except AlignerError as error:
        print(f"aligner-bootstrap: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aligner-bootstrap", description="Turns collected corrections into a better upstream and Aligner."
    )
    parser.add_argument("--version", action="version", version=f"aligner-bootstrap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train_aligner(commands)
    _add_round(commands)
    _add_registry(commands)
    return parser


def _add(commands: Any, name: str, about: str, example: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[:1].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands: Any) -> None:
    demo = _add(commands, "demo", "the whole loop on tiny real models", "aligner-bootstrap demo --rounds 2", _demo)
    demo.add_argument("--rounds", type=int, help="bootstrap rounds (default 1)")
    demo.add_argument(
        "--rag", action="store_true", help="a LlamaIndex app with retrieval instead: answers against their passages"
    )
    demo.add_argument(
        "--seed", type=int, default=10, help="seed of the world, the models and the sampling (default 10)"
    )
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="an empty or new folder (default demo-out)")
    demo.add_argument("--quick", action="store_true", help="a smaller world and fewer steps; its figures mean nothing")


def _add_train_aligner(commands: Any) -> None:
    example = "aligner-bootstrap train-aligner --data corrections.jsonl --base models/llama-1b --out my-aligner"
    train = _add(commands, "train-aligner", "train an Aligner on question-answer-correction rows", example, _train)
    train.add_argument("--data", type=Path, required=True, help='JSON lines {"question", "answer", "correction"}')
    train.add_argument("--base", required=True, help="folder or hub id of the model to start from")
    train.add_argument("--out", type=Path, required=True, help="a new folder for the Aligner")
    train.add_argument("--template", default="aligner-chain/1", help="template to train for (default aligner-chain/1)")
    train.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank and merge them")
    train.add_argument(
        "--asked-share",
        type=float,
        default=0.0,
        help="share of rows whose prompt names some criteria, so that calls can choose them (default 0)",
    )
    train.add_argument("--epochs", type=float, default=3.0, help="passes over the corrections (default 3)")
    train.add_argument(
        "--warm-up-epochs", type=float, default=1.0, help="passes of the warm-up, 0 for none (default 1)"
    )
    train.add_argument("--steps", type=int, default=-1, help="optimiser steps of each stage, instead of passes")
    train.add_argument("--batch", type=int, default=32, help="rows per step (default 32)")
    train.add_argument("--learning-rate", type=float, default=2e-5, help="peak rate (default 2e-5)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default 200)")
    train.add_argument("--name", default="aligner", help="the Aligner's name (default aligner)")
    train.add_argument("--licence", default="", help="licence of the weights, kept in aligner.json")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")


def _add_round(commands: Any) -> None:
    round_ = commands.add_parser("round", help="bootstrap rounds").add_subparsers(required=True, metavar="COMMAND")
    example = "aligner-bootstrap round run --config round.toml --start"
    run = _add(round_, "run", "run one round and promote what passes its gates", example, _round_run)
    run.add_argument(
        "--config", type=Path, required=True, help="a TOML file; a missing one is answered with an example"
    )
    run.add_argument("--start", action="store_true", help="first register the base pair, if nothing is served yet")
    run.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_registry(commands: Any) -> None:
    registry = commands.add_parser("registry", help="what was promoted").add_subparsers(
        required=True, metavar="COMMAND"
    )
    list_ = _add(registry, "list", "list pairs and what is served", "aligner-bootstrap registry list", _registry_list)
    back = _add(commands, "rollback", "serve the pair before this one again", "aligner-bootstrap rollback", _rollback)
    for parser in (list_, back):
        parser.add_argument("--home", type=Path, help="folder of the registry (default: $ALIGNER_HOME)")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _demo(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and any(out.iterdir()):
        message = f"{out} is not empty. Name another folder with --out, or remove it:  rm -r {out}"
        raise ConfigurationError(message)
    run = _rag_demo if arguments.rag else _rounds_demo
    pages = run(
        arguments, {"seed": arguments.seed, "out": out, "quick": arguments.quick, "say": _say, "progress": True}
    )
    _say(pages)
    _say("Your own registry was not touched. To serve this pair:\n")
    _say(f"  export ALIGNER_HOME={(out / 'home').absolute()}\n")
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


def _train(arguments: argparse.Namespace) -> int:
    from bootstrap.training_run import TrainingRun

    trained = TrainingRun.from_arguments(arguments).run(say=_say, progress=True)
    _say(f"{trained.rows} rows, {trained.keep_share:.0%} of them right answers; dropped: {trained.dropped}")
    _say(f"The Aligner is in {arguments.out}. To use it:\n\n  export ALIGNER_MODEL={arguments.out.absolute()}\n")
    return 0


def _round_run(arguments: argparse.Namespace) -> int:
    from bootstrap.config import read_config
    from bootstrap.registry import Registry
    from bootstrap.rounds import register_start, run_round

    sys.path.insert(0, str(Path.cwd()))  # the judge and its like live in the user's folder
    config = read_config(arguments.config)
    say = _say_to_stderr if arguments.json else _say
    if arguments.start and Registry(config.home).served() is None:
        register_start(config, say=say)
    result = run_round(config, say=say, progress=not arguments.json)
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        say(f"The round was {result.status} after {result.seconds:.0f} s.")
    return 0 if result.status == "promoted" else 3


def _registry_list(arguments: argparse.Namespace) -> int:
    from bootstrap.registry import Registry

    registry = Registry(arguments.home)
    served = registry.served()
    events = [
        {
            "time": event.time.isoformat(timespec="seconds"),
            "action": event.action,
            "pair": event.pair.number,
            "upstream": event.pair.upstream.identity if event.pair.upstream else None,
            "aligner": event.pair.aligner.identity,
        }
        for event in registry.history()
    ]
    if arguments.json:
        print(json.dumps({"home": str(registry.home), "served": served and served.number, "history": events}, indent=2))
        return 0
    for event in events:
        print("{time}  {action:<9} pair {pair}: {upstream} with {aligner}".format(**event))
    print(f"Served from {registry.home}: {f'pair {served.number}' if served else 'nothing'}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from bootstrap.registry import Registry

    pair = Registry(arguments.home).rollback()
    served = {"served": pair.number, "aligner": pair.aligner.identity}
    print(json.dumps(served) if arguments.json else f"Pair {pair.number} is served again ({pair.aligner.identity}).")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet_libraries() -> None:
    """Keeps the libraries from phoning home and from their own bars and advice; before any of them is imported."""
    import warnings

    from bootstrap.sft import quiet_network

    quiet_network()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # TRL and transformers warn of what they themselves will change.
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
