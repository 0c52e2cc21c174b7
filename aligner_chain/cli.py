"""The command `aligner-chain`: correct answers from a shell or for any client, check corrections, look at the setup, time decoders.

Exit codes: 0 all went well, 1 an answer could not be corrected or a problem was found, 2 wrong usage or setup.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from aligner_chain import __version__, serve_check, tradeoff
from aligner_chain.aligner import Aligner
from aligner_chain.audit import command as audit
from aligner_chain.bench import report
from aligner_chain.bench import run as bench
from aligner_chain.bench.replays import REPLAYS
from aligner_chain.bench.workloads import SYNTHETIC
from aligner_chain.calibration import DELTA
from aligner_chain.checkpoint import FILE
from aligner_chain.checks import command as check
from aligner_chain.command_line import Parser, place_refused, speaking, whole_number
from aligner_chain.doctor import EXTRAS, describe, diagnose
from aligner_chain.errors import AlignerError, ConfigurationError
from aligner_chain.exchange import Correction, Exchange
from aligner_chain.jsonl import exchange_of, lines, parsed, standard_input, text_of
from aligner_chain.proxy import command as proxy
from aligner_chain.serving import resolve_aligner
from aligner_chain.showing import visible

BATCH = 64
"""Lines that are read, and answers that are corrected, at a time."""

CORRECT_HELP = """\
Prints each corrected answer, in the order read. An answer that could not be corrected is printed as it was, the reason
goes to stderr and the exit code is 1.

A JSON line is {"question": ..., "answer": ...}, or with a conversation and passages
{"turns": [{"role": "user", "text": ...}], "answer": ..., "context": [...], "message_id": ...}."""

CORRECT_EXAMPLE = """\
example:
  aligner-chain correct --aligner path-or-hub-id --diff --question "Is it free?" --answer "Yes, it costs 5 euros."
  aligner-chain correct --file answers.jsonl --json > corrected.jsonl"""

DOCTOR_HELP = """\
Tells which versions and extras are installed, on which device models run, what $ALIGNER_HOME serves, and loads the
Aligner that AlignerCorrector() would take. Downloads nothing."""

DOCTOR_EXAMPLE = """\
example:
  aligner-chain doctor --json"""

CALIBRATE_HELP = """\
Shows what it would save to correct only answers whose score is not above a threshold, and finds the threshold for each
share of bad answers that may be missed. It holds with confidence 1 - DELTA for answers like the labelled ones, so these must be
of the upstream and the kind of questions that are served, and none that the Aligner was trained on.

A JSON line is {"question": ..., "answer": ..., "ok": true or false}, or has "correction" in place of "ok": the answer is ok
where the two are equal. Conversations and passages are given as in `aligner-chain correct`, the upstream's name@version
as "upstream". With too few bad answers the gate stays shut: 299, 59 and 29 are needed for 1, 5 and 10 %.

--write stores a threshold in the folder's aligner.json for this version of the Aligner; a new one is calibrated anew. Exit
code 1: the gate stays shut, and nothing was written."""

CALIBRATE_EXAMPLE = """\
example:
  aligner-chain calibrate --aligner path --file labelled.jsonl
  aligner-chain calibrate --aligner path --file labelled.jsonl --alpha 0.02 0.05 --write 0.05 --json"""

DECODE_HELP = """\
Compares decoders on the same model with random weights, whose output is prescribed: the decoder of this package with
and without the answer as a draft, and Hugging Face's greedy generate, prompt lookup and batches. They take turns in
one process. A speed-up is the median over the pairs of hf_generate's CPU time to the decoder's, prefill included; "same"
says whether the decoder wrote what hf_generate wrote. Exit code 1: one did not.

An object of --json holds besides: the ratios by CPU and by clock with their 95 % intervals, those to every other decoder,
tokens per forward and fed, how much the correction edits the answer, the machine and versions."""

DECODE_EXAMPLE = f"""\
workloads:
  {" ".join(SYNTHETIC)}
  recorded pairs, each a folder of --data with train.jsonl and dev.jsonl of question, answer and correction:
  {" ".join(REPLAYS)}

example:
  aligner-chain bench decode --quick
  aligner-chain bench decode --workload edits_3 rewrite --model 100m --pairs 15 --json > edits.jsonl"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `argv` defaults to the process's arguments."""
    return speaking("aligner-chain", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    # Loading a model draws bars on stderr, which is for what went wrong.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return int(arguments.run(arguments))
    except AlignerError as error:
        print(f"aligner-chain: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if (refused := place_refused(error)) is None:
            raise
        print(f"aligner-chain: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="aligner-chain", description="Corrects the answers of any chat model."
    )
    parser.add_argument("--version", action="version", version=f"aligner-chain {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_correct(commands)
    check.add(commands).set_defaults(run=_check)
    _add_doctor(commands)
    _add_bench(commands)
    _add_calibrate(commands)
    proxy.add(commands).set_defaults(run=proxy.run)
    serve_check.add(commands).set_defaults(run=_serve_check)
    return parser


def _add_correct(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    correct = commands.add_parser(
        "correct",
        help="correct answers, one or many",
        description=CORRECT_HELP,
        epilog=CORRECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    correct.add_argument("--aligner", help="folder or hub id (default: $ALIGNER_MODEL, then what $ALIGNER_HOME serves)")
    correct.add_argument("--template", help="template of a folder that has no aligner.json")
    correct.add_argument("--question", help="the question, with --answer")
    correct.add_argument("--answer", help="the answer to correct, with --question")
    correct.add_argument("--file", type=Path, help="JSON lines to correct (default: stdin)")
    correct.add_argument("--json", action="store_true", help="print one JSON object per answer")
    correct.add_argument("--diff", action="store_true", help="show what changed in place, and why")
    correct.set_defaults(run=_correct)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check the installation and what is served",
        description=DOCTOR_HELP,
        epilog=DOCTOR_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("bench", help="measure what this package saves")
    subjects = command.add_subparsers(required=True, metavar="SUBJECT")
    decode = subjects.add_parser(
        "decode",
        help="compare decoders on the same model",
        description=DECODE_HELP,
        epilog=DECODE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = bench.Settings()
    decode.add_argument("--quick", action="store_true", help=f"2 pairs of {', '.join(bench.QUICK)}, in under a minute")
    decode.add_argument("--json", action="store_true", help="print one JSON object per workload and decoder")
    decode.add_argument("--workload", nargs="+", choices=bench.ALL, metavar="NAME", help="default: all of them")
    decode.add_argument(
        "--pairs", type=whole_number(1), help=f"how often each decoder takes its turn (default: {known.pairs})"
    )
    decode.add_argument("--model", choices=("tiny", "100m"), default=known.model, help="7 or 98 million parameters")
    decode.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=known.dtype)
    decode.add_argument("--threads", type=whole_number(1), default=known.threads, help="of torch (default: 1)")
    decode.add_argument("--seed", type=int, default=known.seed, help="of weights and texts (default: 0)")
    decode.add_argument("--data", type=Path, help="folder with a folder of recorded pairs for each replay")
    decode.set_defaults(run=_decode)


def _add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "calibrate",
        help="find from what score on an answer needs no correction",
        description=CALIBRATE_HELP,
        epilog=CALIBRATE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--aligner", help="folder or hub id (default: $ALIGNER_MODEL, then what $ALIGNER_HOME serves)")
    command.add_argument("--template", help="template of a folder that has no aligner.json")
    command.add_argument("--file", type=Path, required=True, help="labelled answers as JSON lines")
    command.add_argument(
        "--alpha",
        type=_share,
        nargs="+",
        default=[0.01, 0.05, 0.1],
        help="shares of bad answers that may be missed (default: 0.01 0.05 0.1)",
    )
    command.add_argument("--delta", type=_share, default=DELTA, help="risk that more are missed (default: %(default)s)")
    command.add_argument("--write", type=_share, metavar="ALPHA", help="store the threshold of this share")
    command.add_argument("--json", action="store_true", help="print one JSON object per criterion and alpha")
    command.set_defaults(run=_calibrate)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.05")
    return number


def _correct(arguments: argparse.Namespace) -> int:
    exchanges = _exchanges(arguments)
    batch = list(islice(exchanges, BATCH))  # before a model is loaded, so that wrong input is said at once
    failed = False
    with closing(_aligner(arguments)) as aligner:
        while batch:
            for correction in aligner.correct(batch):
                print(_shown(correction, arguments), flush=True)
                failed |= _report_failure(correction)
            batch = list(islice(exchanges, BATCH))
    return int(failed)


def _check(arguments: argparse.Namespace) -> int:
    told = audit.lines(arguments, _progress, _notice) if arguments.audit else check.lines(arguments)
    for line in told:
        print(line)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    diagnosis = diagnose(__version__)
    if arguments.json:
        extras = {extra: diagnosis.has(extra) for extra in EXTRAS}
        print(json.dumps({**asdict(diagnosis), "extras": extras}, ensure_ascii=False, indent=2))
    else:
        print(describe(diagnosis))
    return int(bool(diagnosis.problems))


def _decode(arguments: argparse.Namespace) -> int:
    settings = bench.Settings(
        workloads=arguments.workload or (bench.QUICK if arguments.quick else bench.ALL),
        pairs=arguments.pairs or (bench.QUICK_PAIRS if arguments.quick else bench.Settings().pairs),
        **{name: getattr(arguments, name) for name in ("model", "dtype", "threads", "seed", "data")},
    )
    figures = list[report.Figures]()

    def told() -> Iterator[report.Figures]:
        for one in bench.run(settings, _progress, _notice):
            figures.append(one)
            _progress("")
            yield one

    for line in map(json.dumps, told()) if arguments.json else report.table(told()):
        print(line, flush=True)
    return int(not all(one["identical_to_greedy"] for one in figures))


def _calibrate(arguments: argparse.Namespace) -> int:
    labelled = list(parsed(lines(arguments.file), str(arguments.file), _labelled, "calibrate"))
    if not labelled:  # before a model is loaded
        raise ConfigurationError(
            f"{arguments.file} holds no labelled answers. `aligner-chain calibrate --help` shows the form of a line."
        )
    exchanges, ok = [exchange for exchange, _ in labelled], [fine for _, fine in labelled]
    path = _writable(arguments.aligner or resolve_aligner(), arguments.write)
    with closing(Aligner.from_pretrained(path, template=arguments.template)) as aligner:
        scores = tradeoff.score(aligner, exchanges, batch=BATCH, progress=_progress)
    alphas = sorted({*arguments.alpha, *([arguments.write] if arguments.write else [])})
    rows = tradeoff.measure(scores, ok, alphas=alphas, delta=arguments.delta)
    models = {"aligner": aligner.identity, "upstream": tradeoff.upstream_of(exchanges)}
    for line in (json.dumps(models | asdict(row)) for row in rows) if arguments.json else tradeoff.describe(rows):
        print(line)
    chosen = [row for row in rows if row.alpha == arguments.write]
    if any(row.threshold is None for row in chosen):
        _notice("the gate stays shut, and nothing was written")
        return 1
    if chosen:
        tradeoff.store(path, aligner.metadata, chosen, models["upstream"])
        _notice(
            f"written to {Path(path) / FILE}: {', '.join(f'{row.criterion} {row.threshold:.7g}' for row in chosen)}"
        )
    return 0


def _serve_check(arguments: argparse.Namespace) -> int:
    wrong = False
    for finding in serve_check.findings(arguments):
        print(json.dumps(asdict(finding), ensure_ascii=False) if arguments.json else finding, flush=True)
        wrong = wrong or finding.ok is False
    return int(wrong)


def _writable(path: str, write: float | None) -> str:
    if write is not None and not Path(path).is_dir():
        raise ConfigurationError(
            f"--write needs an Aligner's folder, and {path} is none. Download it, and name its folder."
        )
    return path


def _progress(text: str) -> None:
    """Shows what runs on one line of a terminal, which the next text takes over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _notice(text: str) -> None:
    print(f"aligner-chain: {visible(text)}", file=sys.stderr)


def _aligner(arguments: argparse.Namespace) -> Aligner:
    return Aligner.from_pretrained(arguments.aligner or resolve_aligner(), template=arguments.template)


def _exchanges(arguments: argparse.Namespace) -> Iterator[Exchange]:
    if arguments.question is not None or arguments.answer is not None:
        return iter([_from_options(arguments)])
    if arguments.file is not None:
        return parsed(lines(arguments.file), str(arguments.file), exchange_of, "correct")
    if sys.stdin.isatty():
        raise ConfigurationError("Nothing to correct. Give --question and --answer, --file, or JSON lines on stdin.")
    return parsed(standard_input(), "stdin", exchange_of, "correct")


def _from_options(arguments: argparse.Namespace) -> Exchange:
    if arguments.question is None or arguments.answer is None or arguments.file is not None:
        raise ConfigurationError("Give --question and --answer together, or --file, not both.")
    return Exchange.of(arguments.question, arguments.answer)


def _labelled(row: object) -> tuple[Exchange, bool]:
    if not isinstance(row, Mapping):
        raise TypeError("not a JSON object")
    if ("ok" in row) == ("correction" in row):
        raise ValueError('exactly one of "ok" and "correction" is needed')
    exchange = exchange_of({name: value for name, value in row.items() if name not in ("ok", "correction")})
    if "correction" in row:
        return exchange, text_of(row, "correction") == exchange.answer
    if not isinstance(row["ok"], bool):
        raise TypeError('"ok" is not true or false')
    return exchange, row["ok"]


def _shown(correction: Correction, arguments: argparse.Namespace) -> str:
    if arguments.json:
        return json.dumps(_as_json(correction, diff=arguments.diff), ensure_ascii=False)
    if arguments.diff:
        return f"{correction.diff('terminal' if _coloured() else 'text')}\n  {correction.explain()}"
    return correction.text


def _coloured() -> bool:
    """Whether stdout shows colours and nobody has asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _as_json(correction: Correction, *, diff: bool) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": correction.id,
        "message_id": correction.exchange.message_id,
        "outcome": correction.outcome,
        "reason": correction.reason,
        "text": correction.text,
        "edits": [asdict(edit) for edit in correction.edits],
        "criteria": list(correction.criteria),
        "scores": dict(correction.scores),
        "aligner": correction.aligner,
        "error": str(correction.error) if correction.error is not None else None,
    }
    return {**shown, "diff": correction.diff()} if diff else shown


def _report_failure(correction: Correction) -> bool:
    if correction.outcome != "failed":
        return False
    print(f"aligner-chain: not corrected: {correction.error or correction.reason}", file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main())
