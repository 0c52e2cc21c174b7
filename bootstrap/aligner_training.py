"""Training an Aligner: a warm-up on identity and verdicts, then corrections (Ji et al. 2024, arXiv 2402.02416, 3.2).

The warm-up teaches to copy and to tell right from wrong; the second stage to correct. Only the warm-up may copy a
flawed answer: the second stage never sees one as its own target.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Exchange
from aligner_chain.templates import SPECIAL_TOKENS, CorrectionTemplate, encode, get_template, prepare_tokenizer
from bootstrap.errors import TrainingDataError
from bootstrap.fields import NOT_NEGATIVE, SHARE, require_fields
from bootstrap.pairs import Triple
from bootstrap.sft import Row, TrainingSettings, merged, tune_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignerTrainingSettings:
    """The two stages, the template, and whether adapters are trained (`lora`: arguments of PEFT's `LoraConfig`).

    `keep_share` is the least and the largest share of right answers among the triples that both stages train on; what is too
    many of either kind is dropped at random, (0, 1) drops none. docs/ablations.md has what several shares are worth.
    `asked_share` is the share of rows whose prompt names criteria, so that they can be chosen with each request.
    `quantized` "4bit" trains adapters on a base that is loaded in NF4 (QLoRA, arXiv 2305.14314); it needs CUDA and
    bitsandbytes. `memory_check` refuses a training whose estimate exceeds the memory that is free.

    Raises:
        ConfigurationError: quantised weights are to be trained themselves, `keep_share` is no range of shares, or a field is
            of another type or out of range.
    """

    warm_up: TrainingSettings | None = field(default_factory=lambda: TrainingSettings(epochs=1.0))
    correction: TrainingSettings = field(default_factory=TrainingSettings)
    template: str = "aligner-chain/1"
    lora: Mapping[str, Any] | None = None
    keep_share: tuple[float, float] = (0.3, 0.4)
    asked_share: float = 0.0
    seed: int = 0
    quantized: Literal["4bit"] | None = None
    memory_check: bool = True

    def __post_init__(self) -> None:
        if not _is_range(self.keep_share):
            raise ConfigurationError(
                f"keep_share is {self.keep_share!r}; it is two shares from 0 to 1, the smaller one first: (0.3, 0.4)."
            )
        require_fields(self, asked_share=SHARE, seed=NOT_NEGATIVE)
        get_template(self.template)  # else it is missed after hours of training the upstream
        if self.quantized not in (None, "4bit"):
            raise ConfigurationError(f'quantized is {self.quantized!r}; it can be "4bit" or left out.')
        if self.quantized and not self.lora:
            raise ConfigurationError(
                "Quantized weights cannot be trained themselves: give lora, or leave quantized out."
            )

    @property
    def stages(self) -> dict[str, TrainingSettings]:
        """The trainings by the names of their work folders, in their order."""
        found = {"warm-up": self.warm_up, "correction": self.correction}
        return {name: stage for name, stage in found.items() if stage is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignerRows:
    """The rows of each stage, by its name; the share of right answers, and what was dropped, by reason."""

    stages: dict[str, list[Row]]
    keep_share: float
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignerTraining:
    """What came of a training: the model and how many rows were used and dropped, by reason."""

    model: PreTrainedModel
    rows: int
    keep_share: float
    dropped: dict[str, int]


def train_aligner(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    triples: Sequence[Triple],
    workdir: Path,
    settings: AlignerTrainingSettings,
    *,
    progress: bool = False,
    resume: bool = False,
) -> AlignerTraining:
    """Trains `model` to correct as `triples` do; its tokenizer must hold the template's special tokens.

    Raises:
        TrainingDataError: no triple is left after the ones that do not fit the model's window were dropped.
    """
    rows = aligner_rows(tokenizer, triples, int(model.config.max_position_embeddings), settings)
    return train_stages(model, tokenizer, rows, workdir, settings, progress=progress, resume=resume)


def train_stages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: AlignerRows,
    workdir: Path,
    settings: AlignerTrainingSettings,
    *,
    progress: bool = False,
    resume: bool = False,
) -> AlignerTraining:
    """The second half of `train_aligner`, for who has the rows already.

    Adapters are trained through both stages and merged at the end, unless the weights below them are quantised.
    """
    adapters, tuned = _adapters(settings), model
    for name, stage in settings.stages.items():
        tuned = tune_rows(
            tuned,
            tokenizer,
            rows.stages[name],
            workdir / name,
            stage,
            peft_config=adapters,
            progress=progress,
            resume=resume,
        )
        adapters = None  # it has them now
    return AlignerTraining(
        model=tuned if settings.quantized else merged(tuned),
        rows=len(rows.stages["correction"]),
        keep_share=rows.keep_share,
        dropped=rows.dropped,
    )


def aligner_rows(
    tokenizer: PreTrainedTokenizerFast, triples: Sequence[Triple], window: int, settings: AlignerTrainingSettings
) -> AlignerRows:
    """What both stages are trained on, the same for the same arguments; rows of more than `window` tokens are dropped.

    The tokenizer must hold the template's special tokens.

    Raises:
        TrainingDataError: no row is left.
    """
    template, rng = get_template(settings.template), random.Random(settings.seed)
    balanced = naming_criteria(balance(triples, settings.keep_share, rng), settings.asked_share, rng)
    rows, too_long = correction_rows(template, tokenizer, balanced, window)
    if not rows:
        message = (
            f"None of {len(triples)} rows fits the model's window of {window} tokens; use a base with a longer one."
        )
        raise TrainingDataError(message)
    stages = {"correction": rows}
    if settings.warm_up is not None:
        stages["warm-up"], _ = warm_up_rows(template, tokenizer, balanced, window)
    return AlignerRows(
        stages=stages,
        keep_share=sum(triple.correction is None for triple in balanced) / len(balanced),
        dropped={"too long": too_long, "to balance": len(triples) - len(balanced)},
    )


def balance(triples: Sequence[Triple], share: tuple[float, float], rng: random.Random) -> list[Triple]:
    """The triples with a share of right answers inside `share`, the surplus of either kind dropped at random.

    Of triples of one kind alone none is dropped.
    """
    keeps = [triple for triple in triples if triple.correction is None]
    fixes = [triple for triple in triples if triple.correction is not None]
    low, high = share
    most_keeps = int(len(fixes) * high / (1 - high)) if fixes and high < 1 else len(keeps)
    most_fixes = int(len(keeps) * (1 - low) / low) if keeps and low > 0 else len(fixes)
    chosen = rng.sample(keeps, min(len(keeps), most_keeps)) + rng.sample(fixes, min(len(fixes), most_fixes))
    rng.shuffle(chosen)
    return chosen


def naming_criteria(triples: Sequence[Triple], share: float, rng: random.Random) -> list[Triple]:
    """The triples, a share of which asks for some of the criteria that occur, in any order (MetaAligner, arXiv 2403.17141).

    An answer that breaks none of those it is asked for is right as it stands. Where it breaks some of them nobody knows how
    it would read with only these mended, so then all that it breaks are asked for.
    """
    known = sorted({name for triple in triples for name in triple.criteria})
    return [_asking(triple, known, rng) if known and rng.random() < share else triple for triple in triples]


def _asking(triple: Triple, known: Sequence[str], rng: random.Random) -> Triple:
    chosen, broken = set(rng.sample(known, rng.randint(1, len(known)))), set(triple.criteria)
    if triple.correction is not None and not broken:
        return triple  # nobody said which criterion it breaks
    if chosen & broken:
        chosen |= broken
    asked = rng.sample(sorted(chosen), len(chosen))
    if chosen & broken or triple.correction is None:
        return replace(triple, asked=tuple(asked))
    return replace(triple, asked=tuple(asked), correction=None, criteria=())


def correction_rows(
    template: CorrectionTemplate, tokenizer: PreTrainedTokenizerFast, triples: Sequence[Triple], window: int
) -> tuple[list[Row], int]:
    """The rows of the second stage, and how many were dropped because prompt and output exceed `window` tokens."""
    rows = [
        _fitting(_prompt(template, tokenizer, triple), _target(template, tokenizer, triple), window)
        for triple in triples
    ]
    kept = [row for row in rows if row is not None]
    return kept, len(rows) - len(kept)


def warm_up_rows(
    template: CorrectionTemplate, tokenizer: PreTrainedTokenizerFast, triples: Sequence[Triple], window: int
) -> tuple[list[Row], int]:
    """The rows of the warm-up, two of each triple: its answer is copied, and it gets its verdict.

    The copy is asked for, its verdict being part of the prompt, so that no flawed answer is ever called right or a
    right one wrong. A row that is a verdict alone is short, and nothing in it outweighs the one token that matters.
    """
    rows: list[Row | None] = []
    for triple in triples:
        prompt = _prompt(template, tokenizer, triple)
        identity = _fitting(prompt, template.target(tokenizer, triple.answer), window)
        if not template.verdict:
            rows.append(identity)
            continue
        rows.append(identity and Row(prompt=(*prompt, identity.output[0]), output=identity.output[1:]))
        verdict = _fitting(prompt, _target(template, tokenizer, triple), window)
        rows.append(verdict and (verdict if triple.correction is None else replace(verdict, output=verdict.output[:1])))
    kept = [row for row in rows if row is not None]
    return kept, len(rows) - len(kept)


def _prompt(template: CorrectionTemplate, tokenizer: PreTrainedTokenizerFast, triple: Triple) -> tuple[int, ...]:
    exchange = Exchange(turns=triple.turns, answer=triple.answer, context=triple.context)
    return template.prompt(exchange, tokenizer, triple.asked)


def _target(template: CorrectionTemplate, tokenizer: PreTrainedTokenizerFast, triple: Triple) -> tuple[int, ...]:
    """What the second stage trains for: the verdict and the correction, or the answer itself without a verdict."""
    if template.verdict:
        return template.target(tokenizer, triple.correction, triple.criteria)
    # Nor is there a place for what was broken; the rows say it all the same, and serve any template.
    return template.target(tokenizer, triple.answer if triple.correction is None else triple.correction)


def _fitting(prompt: tuple[int, ...], output: tuple[int, ...], window: int) -> Row | None:
    return Row(prompt=prompt, output=output) if len(prompt) + len(output) <= window else None


def _is_range(share: Any) -> bool:
    """Whether it is what a share may lie between; a file of settings can hold anything."""
    match share:
        case (float() | int() as low, float() | int() as high):
            return 0 <= low <= high <= 1
    return False


def _adapters(settings: AlignerTrainingSettings) -> Any:
    from peft import LoraConfig

    return LoraConfig(**settings.lora) if settings.lora else None


def add_template_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """Gives a base model the special tokens of aligner-chain/1 that it lacks; returns how many.

    Each new token starts as the mean of the words of its name. With full training any start would do, but adapters
    leave embeddings as they are, and tokens that all start alike could then never be told apart.
    """
    import torch

    missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
    prepare_tokenizer(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    tables = {id(one.weight): one.weight for one in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in tables.values():
            for token in missing:
                words = encode(tokenizer, token.strip("<|>").removeprefix("ac:"))
                weight[tokenizer.convert_tokens_to_ids(token)] = weight[list(words)].mean(0)
    return len(missing)
