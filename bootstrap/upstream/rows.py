"""What is trained on: pairs that are young and short enough, right answers to replay, as token ids."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aligner_chain.errors import ConfigurationError
from aligner_chain.templates import chat_prompt, encode
from bootstrap.errors import TrainingDataError
from bootstrap.pairs import Pair
from bootstrap.upstream.settings import DPOSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NUMBERED = re.compile(r"(.*)@(\d+)")

IdRow = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The rows of a training, as token ids.

    `replayed` of them are right answers and no preference; `dropped` counts what was left out, by reason; `longest` is
    the most tokens that a prompt and an answer have together.
    """

    rows: tuple[IdRow, ...]
    replayed: int
    dropped: Mapping[str, int]
    longest: int


def select_rows(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    *,
    replay: Sequence[Pair] = (),
    window: int | None = None,
) -> Selection:
    """The rows to train on, the same for the same arguments.

    A replayed answer stands as chosen and rejected at once. The gradient of the sigmoid loss is nothing there, and that of
    the likelihood term is that of plain fine-tuning, so one trainer and one schedule do both.

    Args:
        replay: pairs whose chosen answer is right; `settings.replay` says how many of them are drawn.
        window: the most tokens that the model reads; a pair of more is left out, whatever `settings.max_length`.

    Raises:
        TrainingDataError: nothing is left.
        ConfigurationError: there is something to replay, and `extra` names a loss that equal answers would poison.
    """
    dropped: Counter[str] = Counter()
    young = _young(pairs, settings, dropped)
    most = min(filter(None, (settings.max_length, window)), default=None)
    rows = _fitting(preference_rows(tokenizer, young), most, dropped)
    if not rows:
        left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
        message = (
            f"No pair is left of {len(pairs)} (left out: {left_out}). Raise max_length or max_age, take a base with a longer "
            "window, or collect more."
        )
        raise TrainingDataError(message)
    repeated = _fitting(_replayed(tokenizer, replay, len(rows), settings), most, dropped)
    return Selection(
        rows=(*rows, *repeated),
        replayed=len(repeated),
        dropped=dict(dropped),
        longest=max(map(_length, (*rows, *repeated))),
    )


def preference_rows(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[IdRow]:
    """Pairs as token ids: the conversation under the model's chat template, and each answer with its end.

    Raises:
        TrainingDataError: the tokenizer has no token for the end of an answer.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingDataError(
            "The upstream's tokenizer has no EOS token, so no answer of it would end. Name the one that its chat template "
            'ends a turn with in tokenizer_config.json:  "eos_token": "..."'
        )
    end = (tokenizer.eos_token_id,)
    return [
        {
            "prompt_ids": chat_prompt(tokenizer, pair.turns),
            "chosen_ids": encode(tokenizer, pair.chosen) + end,
            "rejected_ids": encode(tokenizer, pair.rejected) + end,
        }
        for pair in pairs
    ]


def version_ages(pairs: Sequence[Pair]) -> list[int | None]:
    """For each pair, how many later versions of its upstream gave rejected answers too; None where no version is known.

    Versions that never answered are not counted, since a rejected candidate makes nothing older.
    """
    found = [_NUMBERED.fullmatch(pair.upstream or "") for pair in pairs]
    versions: dict[str, set[int]] = defaultdict(set)
    for match in filter(None, found):
        versions[match[1]].add(int(match[2]))
    return [match and sum(number > int(match[2]) for number in versions[match[1]]) for match in found]


def _young(pairs: Sequence[Pair], settings: DPOSettings, dropped: Counter[str]) -> list[Pair]:
    """Those that are left of older versions; a pair without a known version counts as of the newest."""
    kept = []
    for pair, age in zip(pairs, version_ages(pairs), strict=True):
        if settings.max_age is not None and (age or 0) > settings.max_age:
            dropped["expired"] += 1
        elif _luck(pair, settings.seed) >= settings.age_discount ** (age or 0):
            dropped["discounted for age"] += 1
        else:
            kept.append(pair)
    return kept


def _luck(pair: Pair, seed: int) -> float:
    """A number between 0 and 1, always the same for a pair, so that more data never changes which old pairs stay."""
    digest = hashlib.blake2b(f"{seed} {pair.correction_id}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56


def _replayed(
    tokenizer: PreTrainedTokenizerFast,
    replay: Sequence[Pair],
    pairs: int,
    settings: DPOSettings,
) -> list[IdRow]:
    wanted = round(pairs * settings.replay / (1 - settings.replay))
    if not replay or not wanted:
        return []
    if not settings.can_replay():
        message = (
            f"Replayed answers are pairs of two equal answers, which {settings.extra['loss_type']} cannot take. Set "
            "replay = 0, or leave loss_type out of extra."
        )
        raise ConfigurationError(message)
    drawn = random.Random(settings.seed).sample(replay, min(wanted, len(replay)))
    return [{**row, "rejected_ids": row["chosen_ids"]} for row in preference_rows(tokenizer, drawn)]


def _fitting(rows: Sequence[IdRow], most: int | None, dropped: Counter[str]) -> list[IdRow]:
    """Those that need not be cut: past the cut an edit would be lost, and the pair would teach nothing, silently."""
    kept = [row for row in rows if most is None or _length(row) <= most]
    if len(kept) < len(rows):
        dropped["too long"] += len(rows) - len(kept)
    return kept


def _length(row: IdRow) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
