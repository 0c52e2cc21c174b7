"""`aligner-bootstrap eval`: what correctors are worth, and how far what judges can be trusted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligner_chain.command_line import whole_number
from bootstrap.commands import eval_correctors
from bootstrap.commands.base import STORE_HELP, add_command, existing_store, load_judge, say

if TYPE_CHECKING:
    from bootstrap.judges import Agreement, HumanLabel, HumanPreference, PreferenceAgreement


def add(commands: Any) -> None:
    """Adds `eval correctors` and `eval judge`."""
    subjects = commands.add_parser("eval", help="measure correctors, and what measures").add_subparsers(
        required=True, metavar="COMMAND"
    )
    eval_correctors.add(subjects)
    example = (
        "aligner-bootstrap eval judge --store corrections.db --judge my_desk:judge\n"
        "  aligner-bootstrap eval judge --store corrections.db --judge my_desk:judge --limit 200 --json\n\n"
        "A judge of right and wrong is held against thumbs, reviews and edits of what was served; one of preference (with a\n"
        "method `prefer`) against the pairs of texts that an edit or an accepted review compares. A judge that is both is\n"
        "asked about both. A judge that is paid for is paid for here too; --limit bounds it."
    )
    parser = add_command(subjects, "judge", "how far a judge agrees with what people said", example, _judge)
    parser.add_argument("--store", required=True, help=STORE_HELP)
    parser.add_argument(
        "--judge", required=True, metavar="MODULE:NAME", help="the judge, in this folder or on PYTHONPATH"
    )
    parser.add_argument(
        "--limit", type=whole_number(1), metavar="N", help="at most so many answers, and pairs: the newest"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def _judge(arguments: argparse.Namespace) -> int:
    from bootstrap.judges import Counts, human_labels, human_preferences

    store = existing_store(arguments.store)
    judge = load_judge(arguments.judge)
    newest = slice(None if arguments.limit is None else -arguments.limit, None)
    labels = human_labels(store)[newest] if callable(judge) else []
    pairs = human_preferences(store)[newest] if hasattr(judge, "prefer") else []
    _require_something(judge, arguments, labels, pairs)
    right, preferred = _right(judge, labels) if labels else {}, _preferred(judge, pairs) if pairs else None
    counts = getattr(judge, "counts", None)
    if arguments.json:
        figures = {
            "judge": arguments.judge,
            "right": {name: row.as_dict() for name, row in right.items()},
            "preference": preferred and preferred.as_dict(),
            "counts": counts.as_dict() if isinstance(counts, Counts) else None,
        }
        say(json.dumps(figures, indent=2))
    else:
        say("\n".join([*_right_lines(right), *_preferred_lines(preferred), *_count_lines(counts)]))
    return 0


def _require_something(
    judge: object, arguments: argparse.Namespace, labels: Sequence[HumanLabel], pairs: Sequence[HumanPreference]
) -> None:
    from bootstrap.errors import JudgeError

    if not (callable(judge) or hasattr(judge, "prefer")):
        raise JudgeError(
            f"{arguments.judge} is {type(judge).__name__} and no judge: neither a function of exchanges nor an object with "
            "a method prefer. Make one, like  judge = RuleJudge(...)  or  judge = ChatModelJudge(...)"
        )
    if not (labels or pairs):
        raise JudgeError(
            f"{arguments.store} holds nothing that people said and this judge could be held against. Ask some:\n"
            f"  aligner-bootstrap review --store {arguments.store}\n"
            f"  aligner-bootstrap feedback --store {arguments.store} --message ID --thumb up"
        )


def _right(judge: Callable[[Any], Any], labels: Sequence[HumanLabel]) -> dict[str, Agreement]:
    from bootstrap.errors import JudgeError
    from bootstrap.judges import agreement_by_criterion

    verdicts = judge([label.exchange for label in labels])
    if not isinstance(verdicts, Sequence) or not all(isinstance(one, Mapping) for one in verdicts):
        raise JudgeError(
            f"The judge returned {type(verdicts).__name__} and not a list of objects {{criterion: met}}, one for each "
            "exchange. Name the judge itself, not a function that makes one."
        )
    return agreement_by_criterion(verdicts, [label.right for label in labels])


def _preferred(judge: Any, pairs: Sequence[HumanPreference]) -> PreferenceAgreement:
    from bootstrap.judges import preference_agreement

    said = judge.prefer([one.prompt for one in pairs], [one.first for one in pairs], [one.second for one in pairs])
    return preference_agreement([one.score for one in said], [one.score for one in pairs])


def _right_lines(rows: Mapping[str, Agreement]) -> Iterator[str]:
    if rows:
        yield "right or wrong, as people say of what was served"
        yield from _table(rows)
        yield "People speak of the whole answer: a criterion's row says how much of what they mind it stands for."


def _preferred_lines(found: PreferenceAgreement | None) -> Iterator[str]:
    if found is not None:
        yield "which of two answers is better, as people's edits and reviews say"
        yield from _table({"all (a tie is none)": found.strict, "without ties": found.decided})
        yield f"The judge calls {found.judge_ties:,} of {found.strict.n:,} pairs a tie."


def _count_lines(counts: Any) -> Iterator[str]:
    from bootstrap.judges import Counts

    if isinstance(counts, Counts):
        yield f"{counts.calls:,} calls, {counts.cached:,} verdicts known before, {counts.unreadable:,} unreadable."
        if counts.position_bias is not None:
            yield (
                f"The order of the answers decided {counts.contradicted:,} of {counts.pairs:,} pairs "
                f"({counts.position_bias:.1%}), which are ties; in {counts.toward_first:,} the first one shown won twice."
            )


def _table(rows: Mapping[str, Agreement]) -> Iterator[str]:
    width = max(20, *(len(name) for name in rows))
    yield f"{'':<{width}}  {'agreed':>13}  {'share':>7}  {'95 % interval':>18}  {'kappa':>6}"
    for name, row in rows.items():
        share = "-" if row.share is None else f"{row.share:.1%}"
        kappa = "-" if row.kappa is None else f"{row.kappa:.2f}"
        bounds = f"{row.low:.1%} to {row.high:.1%}"
        yield f"{name:<{width}}  {f'{row.agreed:,} of {row.n:,}':>13}  {share:>7}  {bounds:>18}  {kappa:>6}"
