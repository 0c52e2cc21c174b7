"""What a training did to a model besides what it was to do, from two model folders and rows.

The trainer's own accuracies and margins reach 1 while a model is being destroyed, and its log-probabilities are of the
masked tokens. So everything is measured here on whole answers, against the model that was served before: how many chosen
answers became less likely (Razin et al. 2024, arXiv 2410.08847), what changed on tokens that should not change, and what
the answers look like.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aligner_chain.exchange import Exchange
from bootstrap.errors import TrainingDataError
from bootstrap.pairs import Pair
from bootstrap.upstream import preference_rows
from bootstrap.upstream.collator import token_edits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_UNRELATED = 200
BATCH_TOKENS = 8192

LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "chosen_fallen": 0.40,
        "drift": 0.50,
        "length_ratio": 1.15,
        "repetition": 0.02,
        "broken_off": 0.02,
        "garbled": 0.01,
        "refusals": 0.02,
    }
)
"""The most that each measure may be; the shares of answers are increases over the reference's. See `health_limits`."""

_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m sorry|i am sorry|sorry|unfortunately)?\W*(?:but )?(?:as an ai\b|i (?:can['’]?t|cannot|can not|won['’]?t|will "
    r"not|am unable to|am not able to)\b|i['’]m (?:unable|not able) to\b)",
    re.IGNORECASE,
)
_ENDING = re.compile(r"[.!?…。！？:;)\]}>\"'”’»`*|\d]\s*$")
_WORD = re.compile(r"\w+")
_LOOP = 4  # a run of words this long that comes three times over is a loop


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihoods:
    """How a candidate's log-probabilities differ from its reference's, in nats for each token unless said otherwise.

    `chosen_fallen` is the share (0 to 1) of `pairs` whose whole chosen answer became less likely. `edited`, `prefix` and
    `suffix` are the mean changes on the chosen answers' edited tokens, those before the first edit, and the copied ones
    after it; None where there are none. `drift` is the mean absolute change on `unrelated` answers.
    """

    pairs: int
    chosen_fallen: float | None
    edited: float | None
    prefix: float | None
    suffix: float | None
    unrelated: int
    drift: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerShares:
    """What `answers` texts look like, as shares between 0 and 1, but `words`, the mean number of words of one.

    `distinct` is that of different pairs of neighbouring words (Li et al. 2016, arXiv 1510.03055), `repetition` that of
    answers with a loop, `broken_off` that of those that end amidst a sentence, `refusals` that of those that begin like
    one; `garbled` is None where nothing tells what is garbled.
    """

    answers: int
    words: float
    distinct: float
    repetition: float
    broken_off: float
    refusals: float
    garbled: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """The measures of a candidate (`after`) against its reference (`before`); parts that were not measured are None."""

    likelihoods: Likelihoods | None = None
    before: AnswerShares | None = None
    after: AnswerShares | None = None

    def as_dict(self) -> dict[str, Any]:
        """The measures ready for JSON."""
        return asdict(self)


def measure_health(
    candidate: Path,
    reference: Path,
    probe: Sequence[Pair],
    *,
    unrelated: Sequence[Exchange] = (),
    answers: tuple[Sequence[str], Sequence[str]] | None = None,
    garbled: Callable[[str], bool] | None = None,
    refused: Callable[[str], bool] | None = None,
) -> Health:
    """Measures a candidate; one model is in memory at a time, on the GPU where there is one.

    Args:
        candidate: the folder of the trained model, or of its adapter.
        reference: the folder of the model that it is compared with.
        probe: pairs that stay the same from round to round.
        unrelated: exchanges that no pair is about, with answers; the first 200 count.
        answers: what both models answered to the same prompts, the reference's first.
        garbled: tells of a text whether it is; without it nobody does.
        refused: the same for refusals; None knows how English ones begin.

    Raises:
        TrainingDataError: the answers are not of the same prompts, or the models do not read texts as the same tokens.
    """
    before = after = None
    if answers is not None:
        if len(answers[0]) != len(answers[1]):
            message = f"Both models must have answered the same prompts, not {len(answers[0])} and {len(answers[1])}."
            raise TrainingDataError(message)
        before, after = (answer_shares(texts, garbled=garbled, refused=refused) for texts in answers)
    likelihoods = None
    if probe or unrelated:
        likelihoods = measure_likelihoods(candidate, reference, probe, unrelated[:MOST_UNRELATED])
    return Health(likelihoods=likelihoods, before=before, after=after)


def measure_likelihoods(
    candidate: Path, reference: Path, probe: Sequence[Pair], unrelated: Sequence[Exchange]
) -> Likelihoods:
    """The log-probabilities of the probe's chosen and the unrelated answers under both models, compared.

    What does not fit both windows is not measured and not counted.
    """
    rows = [*probe, *(_as_pair(one) for one in unrelated)]
    (old_rows, old), (new_rows, new) = (_log_probs(folder, rows) for folder in (reference, candidate))
    if old_rows != new_rows:
        message = f"{candidate} and {reference} do not read texts as the same tokens, so their likelihoods say nothing."
        raise TrainingDataError(message)
    changes = [[b - a for a, b in zip(*both, strict=True)] if all(both) else [] for both in zip(old, new, strict=True)]
    chosen, other = changes[: len(probe)], changes[len(probe) :]
    kinds: dict[str, list[float]] = {"edited": [], "prefix": [], "suffix": []}
    for row, change in zip(new_rows, chosen, strict=False):
        found = _token_kinds(row["chosen_ids"], row["rejected_ids"]) if change else []
        for kind, value in zip(found, change, strict=True):
            kinds[kind].append(value)
    return Likelihoods(
        pairs=len(list(filter(None, chosen))),
        chosen_fallen=_mean([float(sum(change) < 0) for change in chosen if change]),
        **{kind: _mean(values) for kind, values in kinds.items()},
        unrelated=len(list(filter(None, other))),
        drift=_mean([abs(value) for change in other for value in change]),
    )


def answer_shares(
    texts: Sequence[str],
    *,
    garbled: Callable[[str], bool] | None = None,
    refused: Callable[[str], bool] | None = None,
) -> AnswerShares:
    """What a model's answers look like; see `AnswerShares`."""
    words = [text.split() for text in texts]
    pairs = [pair for one in words for pair in itertools.pairwise(one)]
    return AnswerShares(
        answers=len(texts),
        words=_mean([len(one) for one in words]) or 0.0,
        distinct=len(set(pairs)) / len(pairs) if pairs else 1.0,
        repetition=_share(_loops(_WORD.findall(text.lower())) for text in texts),
        broken_off=_share(not _ENDING.search(text) for text in texts),
        refusals=_share(map(refused or is_refusal, texts)),
        garbled=_share(map(garbled, texts)) if garbled else None,
    )


def is_refusal(text: str) -> bool:
    """Whether an answer begins as English refusals do."""
    return bool(_REFUSAL.search(text))


def health_limits(health: Health, limits: Mapping[str, float] = LIMITS) -> tuple[tuple[str, float, float, bool], ...]:
    """Each measure that has a limit, as (name, value, limit, whether it is kept).

    The value of "repetition", "broken_off", "garbled" and "refusals" is the increase of the share over the reference's,
    since the same words can be right for one application and wrong for another; "length_ratio" divides the mean lengths.
    What was not measured is not in it.
    """
    values: dict[str, float | None] = {}
    if health.likelihoods is not None:
        values |= {name: getattr(health.likelihoods, name) for name in ("chosen_fallen", "drift")}
    before, after = health.before, health.after
    if before is not None and after is not None:
        values["length_ratio"] = after.words / before.words if before.words else None
        for name in ("repetition", "broken_off", "garbled", "refusals"):
            old, new = getattr(before, name), getattr(after, name)
            values[name] = None if old is None or new is None else new - old
    return tuple(
        (name, value, limits[name], value <= limits[name])
        for name, value in values.items()
        if value is not None and name in limits
    )


def _log_probs(folder: Path, pairs: Sequence[Pair]) -> tuple[list[dict[str, tuple[int, ...]]], list[list[float]]]:
    """The rows as a model's tokenizer makes them, and the log-probability of each token of each chosen answer.

    Nothing of a row that is longer than the model's window: beyond it a likelihood is noise, or an error.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    rows = preference_rows(tokenizer, pairs)
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    sizes = [len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in rows]
    order = sorted((index for index, size in enumerate(sizes) if size <= window), key=sizes.__getitem__)
    found: dict[int, list[float]] = {}
    with torch.inference_mode():
        for batch in _batches(order, rows):
            found |= zip(batch, _batch_log_probs(model, [rows[index] for index in batch]), strict=True)
    return rows, [found.get(index, []) for index in range(len(rows))]


def _batches(order: Sequence[int], rows: Sequence[Mapping[str, tuple[int, ...]]]) -> Iterator[list[int]]:
    """Rows of like length together, about `BATCH_TOKENS` in a batch."""
    batch: list[int] = []
    for index in order:
        length = len(rows[index]["prompt_ids"]) + len(rows[index]["chosen_ids"])
        if batch and (len(batch) + 1) * length > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch_log_probs(model: PreTrainedModel, rows: Sequence[Mapping[str, tuple[int, ...]]]) -> list[list[float]]:
    import torch

    sequences = [torch.tensor([*row["prompt_ids"], *row["chosen_ids"]]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True).to(model.device)
    lengths = torch.tensor([len(one) for one in sequences], device=model.device)
    mask = (torch.arange(ids.shape[1], device=model.device)[None] < lengths[:, None]).long()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    result = []
    for row, line, logit in zip(rows, ids, logits, strict=True):
        start, end = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["chosen_ids"])
        likely = logit[start - 1 : end - 1].float().log_softmax(-1)  # a row at a time: words times tokens are many
        result.append(likely.gather(-1, line[start:end, None])[:, 0].tolist())
    return result


def _token_kinds(chosen: Sequence[int], rejected: Sequence[int]) -> list[str]:
    spans = token_edits(chosen, rejected).chosen
    first = spans[0][0] if spans else len(chosen)
    kinds = ["prefix"] * first + ["suffix"] * (len(chosen) - first)
    for start, end in spans:
        kinds[start:end] = ["edited"] * (end - start)
    return kinds


def _as_pair(exchange: Exchange) -> Pair:
    return Pair(turns=exchange.turns, chosen=exchange.answer, rejected=exchange.answer, correction_id="")


def _loops(words: Sequence[str]) -> bool:
    """Whether the same words come three times one right after the other, or one word over and over."""
    for size in range(1, _LOOP + 1):
        times = 3 if size > 1 else 2 * _LOOP
        for start in range(len(words) - size * times + 1):
            run = words[start : start + size]
            if all(list(words[start + k * size : start + (k + 1) * size]) == list(run) for k in range(1, times)):
                return True
    return False


def _share(flags: Any) -> float:
    return _mean([float(flag) for flag in flags]) or 0.0


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
