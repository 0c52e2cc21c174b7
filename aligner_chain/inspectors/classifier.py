"""A sequence classifier of Hugging Face as an inspector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.exchange import Exchange

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Texts = str | tuple[str, str]
BATCH = 32
"""Answers that are classified at a time."""


def question_and_answer(exchange: Exchange) -> Texts:
    """The last question and the answer, as the pair of texts that a classifier reads."""
    return exchange.question, exchange.answer


class ClassifierInspector:
    """Any sequence classifier of Hugging Face; `from_pretrained` loads one. It may be shared by threads.

    A classifier of exclusive labels gives one `criterion`: the probability of all labels in `ok`, or of all but those in
    `bad`. One of independent labels (`problem_type` "multi_label_classification") gives a criterion for each label that is
    named: its probability where `ok` names it, that of its absence where `bad` does.

    Too long a pair is cut at the ends of its longer text, and judged by what is left. No text can spell a special token.

    Args:
        model: The classifier, used as it is (device and dtype).
        tokenizer: Its tokenizer, with a padding token.
        ok: The labels that mean "all right", as `model.config.id2label` names them.
        bad: The labels that mean the opposite.
        criterion: The name of what a classifier of exclusive labels judges.
        multi_label: Whether the labels are independent; None: what the model's config says.
        texts: What the classifier reads of an exchange: one text or a pair.
        max_tokens: The most tokens of both texts with their frame; None: what tokenizer and model allow.

    Raises:
        ConfigurationError: The labels do not fit the model, or it has a single one (a regression gives no probability).
        TemplateError: The tokenizer has no `tokenizers` backend.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        ok: str | Sequence[str] = (),
        bad: str | Sequence[str] = (),
        criterion: str = "ok",
        multi_label: bool | None = None,
        texts: Callable[[Exchange], Texts] = question_and_answer,
        max_tokens: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.criterion, self.texts = model.eval(), tokenizer, criterion, texts
        kind = getattr(model.config, "problem_type", None)
        self.multi_label = kind == "multi_label_classification" if multi_label is None else multi_label
        self._labels = {str(name): int(index) for index, name in model.config.id2label.items()}
        self._ok, self._bad = self._chosen(ok), self._chosen(bad)
        self._check_labels(regression=kind == "regression")
        self._backend = _backend(model, tokenizer, max_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **settings: Any,
    ) -> ClassifierInspector:
        """Loads a classifier from a folder or a hub id; `settings` are those of the class (`ok=`, `bad=`, ...).

        Weights are safetensors and remote code is not run. `device` and `dtype` are as in `Aligner.from_pretrained`.

        Raises:
            CheckpointError: It cannot be loaded, or is no trained sequence classifier.
            MissingExtraError: torch or transformers are not installed.
        """
        from aligner_chain.engines.loading import load_classifier

        model, tokenizer = load_classifier(path, revision=revision, device=device, dtype=dtype)
        return cls(model, tokenizer, **settings)

    def __deepcopy__(self, memo: object) -> ClassifierInspector:
        return self  # One model in memory, however often a framework copies what holds it.

    def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, float]]:
        texts = [self.texts(exchange) for exchange in exchanges]
        scored = (self._scored(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH))
        return [scores for batch in scored for scores in batch]

    def _scored(self, texts: Sequence[Texts]) -> list[dict[str, float]]:
        import torch

        with torch.inference_mode():
            logits = self.model(**self._inputs(texts)).logits.cpu().double()  # [answers, labels]
        if not logits.isfinite().all():
            raise ConfigurationError(
                f'The classifier gives scores that are no finite numbers in {self.model.dtype}. Load it with dtype="float32".'
            )
        return self._independent(logits) if self.multi_label else self._exclusive(logits)

    def _inputs(self, texts: Sequence[Texts]) -> dict[str, torch.Tensor]:
        import torch

        rows = self._backend.encode_batch(list(texts))
        inputs = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = [row.type_ids for row in rows]
        return {name: torch.tensor(values, device=self.model.device) for name, values in inputs.items()}

    def _exclusive(self, logits: torch.Tensor) -> list[dict[str, float]]:
        fine = self._ok or [index for index in self._labels.values() if index not in self._bad]
        # Rounding may take a sum of probabilities past 1.
        return [{self.criterion: min(float(p), 1.0)} for p in logits.softmax(-1)[:, fine].sum(-1)]

    def _independent(self, logits: torch.Tensor) -> list[dict[str, float]]:
        signs = {**dict.fromkeys(self._ok, 1.0), **dict.fromkeys(self._bad, -1.0)}
        names = {index: name for name, index in self._labels.items()}
        return [{names[index]: float((sign * row[index]).sigmoid()) for index, sign in signs.items()} for row in logits]

    def _chosen(self, names: str | Sequence[str]) -> list[int]:
        named = [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in named if name not in self._labels]:
            raise ConfigurationError(
                f"The classifier has no label {unknown[0]!r}. Its labels are {', '.join(map(repr, self._labels))}."
            )
        return [self._labels[name] for name in named]

    def _check_labels(self, *, regression: bool) -> None:
        if regression or (len(self._labels) == 1 and not self.multi_label):
            raise ConfigurationError(
                "The classifier has a single score and no labels, so it gives no probability. Map its score into 0 to 1 "
                "in a CallableInspector, or say multi_label=True where it was trained as a yes or no."
            )
        several = bool(self._ok) + bool(self._bad)
        if set(self._ok) & set(self._bad) or not several or (several == 2 and not self.multi_label):
            raise ConfigurationError(
                f"Which of the labels {', '.join(map(repr, self._labels))} mean that an answer is all right? Name them with "
                "ok=, or those that mean the opposite with bad=; both only where labels are independent, and none in both."
            )


def _backend(model: PreTrainedModel, tokenizer: Tokenizer, max_tokens: int | None) -> Backend:
    """A tokenizer of the inspector's own: settings of one that is shared could be changed by others at any time."""
    from aligner_chain.templates.plain import framing_twin

    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            "The classifier's tokenizer has no padding token, so answers cannot be read in batches. Set "
            "tokenizer.pad_token, and model.config.pad_token_id to its id, and pass both as objects."
        )
    backend = framing_twin(tokenizer)
    window = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    backend.enable_truncation(max_tokens or min(window, tokenizer.model_max_length), strategy="longest_first")
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return backend
