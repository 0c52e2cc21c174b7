"""Where the loss looks: at the tokens that a correction changed, and not at the many that it copied.

Of two answers that are mostly the same, the shared tokens behind an edit have different contexts, so that DPO pushes them
down although nothing is wrong with them. RLHF-V (Yu et al. 2023, arXiv 2312.00849) weighs corrected segments up for the
same reason; here the others weigh nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from bootstrap.errors import TrainingDataError

ANSWER_MASK = "answer_mask"
"""The key of a batch under which the mask of the whole answers is kept, where it is."""

LEAST_SIMILAR = 0.5
"""Answers with a smaller share of common tokens are a rewrite, of which the whole counts."""

Ids = Sequence[int]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenEdits:
    """What differs between two answers: the i-th span of `chosen` stands where the i-th span of `rejected` stood.

    Spans are (start, end) in tokens, the end excluded; one of a pair may be empty. `ratio` is the share of common tokens,
    between 0 and 1, as `difflib` defines it: twice the matches by the sum of both lengths.
    """

    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]
    ratio: float


def token_edits(chosen: Ids, rejected: Ids) -> TokenEdits:
    """The edits between two answers as token ids.

    What both begin and end with is set aside first: the matcher takes quadratic time, and corrections change little.
    """
    head = _common(chosen, rejected)
    tail = _common(chosen[head:][::-1], rejected[head:][::-1])
    middle = chosen[head : len(chosen) - tail], rejected[head : len(rejected) - tail]
    matcher = SequenceMatcher(None, *middle, autojunk=False)
    changed = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    matches = head + tail + sum(block.size for block in matcher.get_matching_blocks())
    total = len(chosen) + len(rejected)
    return TokenEdits(
        chosen=tuple((head + start, head + end) for _, start, end, _, _ in changed),
        rejected=tuple((head + start, head + end) for _, _, _, start, end in changed),
        ratio=2 * matches / total if total else 1.0,
    )


def edit_masks(chosen: Ids, rejected: Ids, least_similar: float = LEAST_SIMILAR) -> tuple[list[int], list[int]]:
    """1 for each token of the chosen and of the rejected answer that the loss looks at, 0 for the others.

    These are the edited tokens and one boundary token behind each edit: a pure deletion leaves nothing else in the chosen
    answer, and the mean over no token is NaN. Where less than `least_similar` of the tokens are common, or nothing was
    edited at all (a replayed answer), all tokens count. No mask is ever all zero.
    """
    edits = token_edits(chosen, rejected)
    if edits.ratio < least_similar or not edits.chosen:
        return [1] * len(chosen), [1] * len(rejected)
    return _mask(len(chosen), edits.chosen), _mask(len(rejected), edits.rejected)


class EditSpanCollator:
    """Rows of token ids to a batch for TRL's `DPOTrainer`, with the loss on what was edited.

    Args:
        whole: the collator of TRL that pads; its `completion_mask` covers the whole answers.
        least_similar: see `edit_masks`; 0 masks rewrites too.
        keep_answers: whether the mask of the whole answers stays in the batch, under `ANSWER_MASK`.
    """

    def __init__(
        self,
        whole: Callable[[list[dict[str, Any]]], dict[str, Any]],
        least_similar: float = LEAST_SIMILAR,
        *,
        keep_answers: bool = False,
    ) -> None:
        self._whole, self._least_similar, self._keep_answers = whole, least_similar, keep_answers

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`: all chosen answers and then all rejected ones, each behind its prompt.

        Raises:
            TrainingDataError: the rows hold log-probabilities of the reference; those are of whole answers.
        """
        if any(name in row for row in rows for name in ("ref_chosen_logps", "ref_rejected_logps")):
            message = (
                "Precomputed reference log-probabilities are of whole answers; train without them, or collator=whole."
            )
            raise TrainingDataError(message)
        batch = self._whole(rows)
        mask = batch["completion_mask"]
        if self._keep_answers:
            batch[ANSWER_MASK] = mask.clone()
        for number, row in enumerate(rows):
            start = len(row["prompt_ids"])
            kept = edit_masks(row["chosen_ids"], row["rejected_ids"], self._least_similar)
            for line, bits in zip((number, len(rows) + number), kept, strict=True):
                mask[line, start : start + len(bits)] = mask.new_tensor(bits)
        return batch


def _common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    return next((index for index in range(length) if one[index] != other[index]), length)


def _mask(length: int, spans: Sequence[Span]) -> list[int]:
    bits = [0] * length
    for start, end in spans:
        # At the very end no token follows; the one before it is the boundary then.
        first, last = (start, end + 1) if end < length else (min(start, length - 1), length)
        bits[first:last] = [1] * (last - first)
    return bits
