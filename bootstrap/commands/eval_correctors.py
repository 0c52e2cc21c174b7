"""`aligner-bootstrap eval correctors`: who corrects how well, by a judge, beside what understands nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands.base import add_command, load_judge, say, say_to_stderr

if TYPE_CHECKING:
    from bootstrap.correctors import Evaluation, Prompt

# As in `bootstrap.correctors.PROMPT_SETS`, which is imported when it is needed.
SETS = ("beavertails", "harmfulqa", "truthfulqa", "xstest", "alpacaeval")


def add(subjects: Any) -> None:
    """Adds `eval correctors`."""
    about = "win rates of correctors by a judge, beside what they change, damage and cost"
    example = (
        "aligner-bootstrap eval correctors --data answers.jsonl --judge my_judges:judge --corrector ours=models/aligner \\\n"
        "      base=my_chains:critique --lexicon words.txt --question-only my_models:small --out eval.json\n"
        "  aligner-bootstrap eval correctors --prompts xstest --from Paul/XSTest --answers xstest.jsonl \\\n"
        "      --upstream my_models:upstream --judge my_judges:judge --corrector ours=models/aligner\n\n"
        'a line of --data:  {"question": "...", "answer": "..."}, perhaps with "context", "correction" (a right answer), "ok"\n'
        '(it needs nothing) and "harmless" (a refusal of it is one too many)\n\n'
        "Each answer goes through each corrector, and the judge says in both orders which text is better; a judge that is paid\n"
        "for is paid for here too: --limit bounds it, and with a cache the same command goes on where one was killed.\n\n"
        "exit codes: 0 all was measured, 1 a corrector failed on answers, or a judge or the upstream could not be asked"
    )
    parser = add_command(subjects, "correctors", about, example, _correctors)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="FILE", help="questions with answers, as JSON lines")
    source.add_argument("--prompts", choices=SETS, help="a public set of questions")
    parser.add_argument(
        "--from", dest="source", metavar="PLACE", help="of --prompts: its file, a folder, or its id on the hub"
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="the upstream's answers to --prompts")
    model = "a chat model of LangChain, MODULE:NAME or PROVIDER:MODEL"
    parser.add_argument("--upstream", metavar="MODEL", help=f"{model}: writes what is missing in --answers")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="MODULE:NAME",
        help="a judge of preference, several by criterion, or one of right and wrong",
    )
    parser.add_argument(
        "--corrector",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=TARGET",
        help="an Aligner's folder or hub id, or MODULE:NAME of a function or chain; the served Aligner is in anyway",
    )
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="words to delete, one a line: a null corrector")
    parser.add_argument("--question-only", metavar="MODEL", help=f"{model}: answers anew, a null corrector")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first answers")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON here too")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def _correctors(arguments: argparse.Namespace) -> int:
    from aligner_chain.audit.command import failures, targets
    from aligner_chain.audit.correctors import load
    from bootstrap.commands.annotate import load_chat_model
    from bootstrap.correctors import evaluate
    from bootstrap.correctors.lines import table

    _require_sense(arguments)
    judge, prompts = load_judge(arguments.judge), _prompts(arguments)
    asked = arguments.question_only
    with ExitStack() as opened:
        opened.callback(_progress, "")  # an error stands on a line of its own
        named = targets(arguments.corrector, _notice)
        found = evaluate(
            {name: load(target, opened) for name, target in named.items()},
            prompts,
            judge,
            lexicon=None if arguments.lexicon is None else _words(arguments.lexicon),
            question_only_model=None if asked is None else load_chat_model(asked, "--question-only"),
            progress=_progress,
        )
    figures = json.dumps(_figures(arguments, judge, found), indent=2, ensure_ascii=False)
    if arguments.out is not None:
        arguments.out.write_text(f"{figures}\n", encoding="utf-8")
    say(figures if arguments.json else "\n".join(table(found)))
    failed = list(failures(found.audit))
    for line in failed:
        _notice(line)
    return int(bool(failed))


def _require_sense(arguments: argparse.Namespace) -> None:
    """Says what cannot work before anything is downloaded, loaded or paid for."""
    from aligner_chain.errors import ConfigurationError
    from bootstrap.correctors import PROMPT_SETS

    out = arguments.out
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigurationError(f"--out {out} cannot be written: it takes a file in a folder that is there.")
    if arguments.prompts is None:
        options = {"--from": arguments.source, "--answers": arguments.answers, "--upstream": arguments.upstream}
        if given := [option for option, value in options.items() if value is not None]:
            raise ConfigurationError(f"{given[0]} belongs to --prompts; --data holds its answers.")
    elif arguments.source is None or arguments.answers is None:
        known = PROMPT_SETS[arguments.prompts]
        raise ConfigurationError(
            f"--prompts {arguments.prompts} needs its questions and a file for their answers:\n"
            f"  --from {known.hub} --answers {arguments.prompts}.jsonl   ({known.licence}; downloads it)\n"
            f"  --from FOLDER --answers {arguments.prompts}.jsonl   (a folder with {' or '.join(known.files)})"
        )


def _prompts(arguments: argparse.Namespace) -> list[Prompt]:
    if arguments.prompts is None:
        from aligner_chain.jsonl import lines, parsed

        read = parsed(lines(arguments.data), str(arguments.data), _read, "eval correctors", "aligner-bootstrap")
        return list(read)[: arguments.limit]
    from bootstrap.commands.annotate import load_chat_model
    from bootstrap.correctors.answers import answered
    from bootstrap.correctors.prompts import load

    asked = load(arguments.prompts, arguments.source, notice=_notice)[: arguments.limit]
    upstream = None if arguments.upstream is None else load_chat_model(arguments.upstream, "--upstream")
    return answered(asked, arguments.answers, upstream, progress=_progress)


def _read(row: object) -> Prompt:
    """A prompt from an object of JSON: that of an audit's row, and perhaps "harmless"."""
    from aligner_chain.audit.rows import read
    from bootstrap.correctors import Prompt

    if not isinstance(row, Mapping):
        raise TypeError("not a JSON object")
    harmless = row.get("harmless")
    if not isinstance(harmless, bool | None):
        raise TypeError('"harmless" is not true or false')
    return Prompt(row=read({name: value for name, value in row.items() if name != "harmless"}), harmless=harmless)


def _words(path: Path) -> list[str]:
    from aligner_chain.jsonl import lines

    return [line.strip() for line in lines(path)]


def _figures(arguments: argparse.Namespace, judge: Any, found: Evaluation) -> dict[str, Any]:
    from bootstrap.judges import Counts

    judges: Mapping[str, Any] = judge if isinstance(judge, Mapping) else {"preferred": judge}
    counted = {name: getattr(one, "counts", None) for name, one in judges.items()}
    counts = {name: one.as_dict() for name, one in counted.items() if isinstance(one, Counts)}
    told = {"prompts": arguments.prompts or str(arguments.data), "judge": arguments.judge, "judge_counts": counts}
    return {**told, **found.as_json()}


def _progress(text: str) -> None:
    """Shows what runs on one line of a terminal, which the next text takes over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _notice(text: str) -> None:
    say_to_stderr(f"aligner-bootstrap: {text}")
