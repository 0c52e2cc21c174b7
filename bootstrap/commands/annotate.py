"""`aligner-bootstrap annotate`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, say, say_to_stderr

if TYPE_CHECKING:
    from aligner_chain.exchange import Exchange
    from bootstrap.annotate.rows import AnnotationReport, Estimate
    from bootstrap.annotate.spending import Budget, Prices

EXIT_CODES = {"": 0, "failures": 1, "budget": 4, "interrupted": 130}


def add(commands: Any) -> None:
    """Adds `annotate`."""
    about = "a strong chat model corrects answers: a first training set for an Aligner"
    example = (
        "aligner-bootstrap annotate --data answers.jsonl --model openai:gpt-5 --out corrections.jsonl --dry-run\n"
        "  aligner-bootstrap annotate --data answers.jsonl --model my_models:strong --out corrections.jsonl\n\n"
        'a line of --data:  {"question": "...", "answer": "..."}, perhaps with "context": ["a passage", ...]; or instead of\n'
        'the question  "turns": [{"role": "user", "text": "..."}, ...]\n\n'
        "exit codes: 0 every row was asked about, 1 some failed (run it again), 4 the budget is spent, 130 interrupted"
    )
    parser = add_command(commands, "annotate", about, example, _annotate)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="FILE", help="answers as JSON lines")
    source.add_argument("--store", metavar="URL", help="a store's URL or file: the answers of its training split")
    parser.add_argument(
        "--model", help="a chat model of LangChain: MODULE:NAME in this folder, or PROVIDER:MODEL with langchain"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines for train-aligner --data")
    parser.add_argument(
        "--limit", type=whole_number(1), metavar="ROWS", help="only the first rows, to see what they cost"
    )
    parser.add_argument(
        "--criterion", action="append", default=[], metavar="TEXT", help="what to judge by besides; may be repeated"
    )
    parser.add_argument("--requests-per-minute", type=float, metavar="N", help="calls in a minute, retries among them")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls in flight at once (default 8)")
    parser.add_argument("--attempts", type=int, default=4, metavar="N", help="tries of a call that fails (default 4)")
    parser.add_argument("--price-in", type=float, metavar="MONEY", help="for a million tokens that are read")
    parser.add_argument("--price-out", type=float, metavar="MONEY", help="for a million tokens that are written")
    parser.add_argument(
        "--budget", metavar="AMOUNT", help="the most for all runs into --out: 12.50 (needs prices), or 200000tokens"
    )
    parser.add_argument("--dry-run", action="store_true", help="count rows and tokens, ask nobody")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def _annotate(arguments: argparse.Namespace) -> int:
    from bootstrap.annotate.running import annotate, estimate

    exchanges = list(islice(_exchanges(arguments), arguments.limit))
    prices, budget = _prices(arguments), _budget(arguments.budget)
    if arguments.dry_run:
        told = estimate(exchanges, arguments.out, criteria=arguments.criterion, prices=prices)
        say(json.dumps(told.as_dict(), indent=2) if arguments.json else _estimated(told))
        return 0
    try:
        report = annotate(
            exchanges,
            load_chat_model(arguments.model),
            arguments.out,
            criteria=arguments.criterion,
            requests_per_minute=arguments.requests_per_minute,
            concurrency=arguments.concurrency,
            attempts=arguments.attempts,
            prices=prices,
            budget=budget,
            on_progress=lambda report: say_to_stderr(_progress(report)),
        )
    except KeyboardInterrupt:  # the second one: the calls in flight are given up, and nothing waits for their threads
        say_to_stderr(f"Left at once; what was answered before is kept. {_GO_ON}")
        sys.stdout.flush()
        os._exit(130)
    say(json.dumps(report.as_dict(), indent=2) if arguments.json else _told(report, arguments.out))
    if advice := _advice(report):
        say_to_stderr(advice)
    return EXIT_CODES[report.stopped] or int(report.failed > 0)


def load_chat_model(reference: str | None, option: str = "--model") -> Any:
    """The chat model, or what a factory without arguments makes, that `module:name` names; else a provider's model.

    `option` is where it was named, for the message.

    Raises:
        ConfigurationError: there is neither.
        MissingExtraError: it may be a provider's, and langchain is not installed.
    """
    from langchain_core.runnables import Runnable

    from aligner_chain.errors import ConfigurationError
    from bootstrap.judges import load_callable

    if not reference or ":" not in reference:
        raise ConfigurationError(
            f"{option} {reference or ''} names no model. Write MODULE:NAME, a chat model of LangChain or a function that makes one, "
            f"in this folder or on PYTHONPATH:  {option} my_models:strong\n"
            f"or, with the extra agents, PROVIDER:MODEL:  {option} openai:gpt-5"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the model's module lives in the user's folder
    module, _, name = reference.partition(":")
    if not _defines(module, name):
        return _of_provider(reference)
    found = load_callable(reference)
    model = _made(found, reference) if callable(found) and not isinstance(found, Runnable) else found
    if not isinstance(model, Runnable):
        raise ConfigurationError(f"{reference} is {type(model).__name__} and no chat model of LangChain.")
    return model


def _made(factory: Callable[[], Any], reference: str) -> Any:
    from aligner_chain.errors import ConfigurationError

    try:
        return factory()
    except Exception as error:  # the user's own code
        raise ConfigurationError(f"{reference} made no model: {type(error).__name__}: {error}.") from error


def _defines(module: str, name: str) -> bool:
    """Whether there is such a module with such a name in it; `openai` is a module and a provider."""
    from aligner_chain.errors import ConfigurationError

    try:
        return name.isidentifier() and hasattr(importlib.import_module(module), name)
    except ImportError as error:
        if error.name == module.partition(".")[0] or error.name == module:
            return False
        raise ConfigurationError(f"{module}:{name}: {module} cannot be imported: {error}.") from error


def _of_provider(reference: str) -> Any:
    from aligner_chain.errors import ConfigurationError, MissingExtraError

    module, _, name = reference.partition(":")
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingExtraError("langchain", "agents") from error
    try:
        return init_chat_model(name, model_provider=module)
    except Exception as error:  # a provider's package raises its own, for a missing key among others
        raise ConfigurationError(
            f"{reference} is neither {name} in a module {module} of this folder nor a model that langchain can make "
            f"({type(error).__name__}: {error})."
        ) from error


def read_exchanges(path: Path) -> list[Exchange]:
    """The exchanges of JSON lines; nothing of a file that has a wrong one.

    Raises:
        TrainingDataError: the file cannot be read, holds no rows, or a line is wrong; the message names it.
    """
    from aligner_chain.jsonl import exchange_of, unreadable
    from bootstrap.errors import TrainingDataError

    exchanges = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    exchanges.append(_read(exchange_of, line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingDataError(unreadable(path, error)) from error
    if not exchanges:
        raise TrainingDataError(f"{path} holds no rows. {_FORM}")
    return exchanges


_FORM = 'Each line must be a JSON object like\n  {"question": "...", "answer": "...", "context": ["..."]}'


def _read(exchange_of: Callable[[object], Exchange], line: str, where: str) -> Exchange:
    from aligner_chain.jsonl import object_of
    from bootstrap.errors import TrainingDataError

    try:
        return exchange_of(object_of(line))
    except (ValueError, TypeError) as error:
        raise TrainingDataError(f"{where}: {error}. {_FORM}") from error


def _exchanges(arguments: argparse.Namespace) -> Iterable[Exchange]:
    if arguments.data is not None:
        return read_exchanges(arguments.data)
    return _exchanges_of_store(arguments.store)


def _exchanges_of_store(url: str) -> Iterable[Exchange]:
    from bootstrap.commands.base import existing_store
    from bootstrap.errors import TrainingDataError

    store = existing_store(url)
    records = iter(store.records("train"))
    first = next(records, None)
    if first is None:
        raise TrainingDataError(
            f"{url} holds no answers in its training split yet. Collect some:\n"
            "  AlignerCorrector(on_correction=Collector(store).submit)\nor give answers as a file:  --data answers.jsonl"
        )
    return (record.correction.exchange for record in chain([first], records))


def _prices(arguments: argparse.Namespace) -> Prices | None:
    from aligner_chain.errors import ConfigurationError
    from bootstrap.annotate.spending import Prices

    given = (arguments.price_in, arguments.price_out)
    if given == (None, None):
        return None
    if None in given:
        raise ConfigurationError("Give both prices, --price-in and --price-out; one may be 0.")
    return Prices(read=arguments.price_in, written=arguments.price_out)


def _budget(text: str | None) -> Budget:
    from aligner_chain.errors import ConfigurationError
    from bootstrap.annotate.spending import Budget

    if text is None:
        return Budget()
    read = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(tokens?)?\s*", text)
    if read is None:
        raise ConfigurationError(
            f"--budget {text!r} is no amount. Write money, like 12.50, or tokens, like 200000tokens"
        )
    amount = float(read[1])
    return Budget(tokens=amount) if read[2] else Budget(money=amount)


def _estimated(told: Estimate) -> str:
    money = "" if told.money is None else f", {told.money:.2f} in money"
    return (
        f"{told.rows:,} rows: {told.done:,} done already, {told.skipped:,} skipped, {told.calls:,} calls to make.\n"
        f"At most about {told.tokens.read:,} tokens read and {told.tokens.written:,} written{money}; right answers cost less to "
        "write,\na model that thinks first costs more. To see what yours costs:  --limit 20"
    )


def _progress(report: AnnotationReport) -> str:
    money = "" if report.money is None else f"  {report.money:.4f} spent"
    done = report.rows - report.left
    return (
        f"{done:>{len(str(report.rows))}}/{report.rows}  {report.corrected} corrected  {report.kept_as_right} right  "
        f"{report.refused_rows} refused  {report.failed} failed  {report.tokens.total:,} tokens{money}"
    )


def _told(report: AnnotationReport, out: Path) -> str:
    lines = [
        ("rows", f"{report.rows:,}", ""),
        ("corrected", f"{report.corrected:,}", ""),
        ("kept as right", f"{report.kept_as_right:,}", _share(report)),
        ("refused by checks", f"{report.refused_rows:,}", _counts(report.refused)),
        ("failed", f"{report.failed:,}", report.last_error),
        ("skipped", f"{sum(report.skipped.values()):,}", _counts(report.skipped)),
        ("not reached", f"{report.left:,}", ""),
        ("tokens read", f"{report.tokens.read:,}", _untold(report)),
        ("tokens written", f"{report.tokens.written:,}", ""),
        *([] if report.money is None else [("money", f"{report.money:,.4f}", "")]),
    ]
    table = "\n".join(f"{name:<18}{figure:>14}  {note}".rstrip() for name, figure, note in lines)
    if not report.written:
        return f"{table}\nNo row passed, so {out} was not written."
    use = f"aligner-bootstrap train-aligner --data {shlex.quote(str(out))} --base models/llama-1b --out my-aligner"
    return f"{table}\n{report.written:,} rows are in {out}. To train on them:\n\n  {use}\n"


def _share(report: AnnotationReport) -> str:
    return "" if report.keep_share is None else f"{report.keep_share:.0%} of what is written"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _untold(report: AnnotationReport) -> str:
    return f"of {report.untold_replies:,} replies estimated: the provider told none" if report.untold_replies else ""


def _advice(report: AnnotationReport) -> str:
    """How to go on after a run that is not complete."""
    if report.stopped == "budget":
        return f"The budget is spent: another call could exceed it. To go on, raise --budget. {_GO_ON}"
    if report.stopped == "failures":
        return (
            f"Stopped, since one call after the other failed: {report.last_error}\n"
            f"Check the model's name, its key and the network. {_GO_ON}"
        )
    if report.stopped == "interrupted":
        return f"Interrupted. {_GO_ON}"
    return f"{report.failed:,} calls failed. {_GO_ON}" if report.failed else ""


_GO_ON = "The same command goes on where this run ended and pays for nothing twice."
