"""A reward model as judge of preference: a classifier of Hugging Face with one score for a whole conversation."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.exchange import Exchange, Turn
from bootstrap.errors import JudgeError
from bootstrap.judges.preference import Preference, compared, paired, whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

BATCH = 16
"""Answers that are scored at a time."""


class RewardModelJudge:
    """Prefers the answer that a sequence classifier of Hugging Face gives the higher score. Threads may share it.

    A model with a chat template reads the conversation and the answer as its last turn, too long ones without their
    beginning; one without reads the last question and the answer as a pair, cut at the ends of the longer one. No text
    can spell a special token. Passages are not shown: no reward model was trained with them.

    Args:
        model: a folder or a hub id. It is loaded when the judge is first asked; weights are safetensors, and remote
            code is not run.
        label: of a classifier with several labels, the one that means "good": its score is the label's log-odds in nats.
            None takes the only logit there is.
        margin: scores that differ by no more are a tie, in the units of the model.
        revision, device, dtype: as in `Aligner.from_pretrained`.
        batch: answers that are scored at a time.

    Raises:
        ConfigurationError: `margin` is below 0 or `batch` below 1.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        label: str | None = None,
        margin: float = 0.0,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch: int = BATCH,
    ) -> None:
        if not (margin >= 0 and batch >= 1):
            raise ConfigurationError(f"margin must be 0 or more and batch 1 or more, not {margin} and {batch}.")
        self.identity = f"{model}@{revision}" if revision else str(model)
        self._path, self._label, self._margin, self._batch = model, label, margin, batch
        self._loading: dict[str, Any] = {"revision": revision, "device": device, "dtype": dtype}
        self._scores: dict[bytes, float] = {}
        self._working = threading.Lock()

    def prefer(self, prompts: Sequence[Exchange], first: Sequence[str], second: Sequence[str]) -> list[Preference]:
        """As `PreferenceJudge.prefer`; the reason tells both scores.

        Raises:
            CheckpointError: the model cannot be loaded, or its tokenizer cannot pad.
            ConfigurationError: it has several labels and `label` names none of them.
            JudgeError: it gives scores that are no numbers.
        """
        rows = paired(prompts, first, second)
        scores = self.scores([p for p, _, _ in rows for _ in (1, 2)], [text for row in rows for text in row[1:]])
        return [
            Preference(score=compared(one, other, self._margin), reason=f"rewards {one:.3f} and {other:.3f}")
            for one, other in zip(scores[::2], scores[1::2], strict=True)
        ]

    def scores(self, prompts: Sequence[Exchange], answers: Sequence[str]) -> list[float]:
        """The score of each answer to its prompt, in the model's own units; each text is scored once. Raises as `prefer`."""
        rows = {_key(prompt, answer): (prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)}
        with self._working:
            new = [key for key in rows if key not in self._scores]
            for start in range(0, len(new), self._batch):
                keys = new[start : start + self._batch]
                self._scores.update(zip(keys, self._scored([rows[key] for key in keys]), strict=True))
        return [self._scores[_key(prompt, answer)] for prompt, answer in zip(prompts, answers, strict=True)]

    def _scored(self, rows: Sequence[tuple[Exchange, str]]) -> list[float]:
        import torch

        reader = self._loaded
        with torch.inference_mode():
            logits = reader.model(**reader.inputs(rows)).logits.cpu().double()  # [answers, labels]
        if not logits.isfinite().all():
            raise JudgeError(f'{self.identity} gives scores that are no finite numbers. Load it with dtype="float32".')
        return [float(score) for score in self._of_label(reader.model, logits)]

    def _of_label(self, model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
        """One score for each row of logits [answers, labels]."""
        if self._label is None or logits.shape[1] == 1:
            return logits[:, 0]
        at = int(model.config.label2id[self._label])
        if model.config.problem_type == "multi_label_classification":
            return logits[:, at]  # of an independent label the logit is the log-odds
        others = [index for index in range(logits.shape[1]) if index != at]
        return logits[:, at] - logits[:, others].logsumexp(-1)

    @cached_property
    def _loaded(self) -> _Reader:
        from aligner_chain.engines.loading import load_classifier

        model, tokenizer = load_classifier(self._path, **self._loading)
        labels = list(model.config.label2id)
        if not (len(labels) == 1 if self._label is None else self._label in labels):
            raise ConfigurationError(
                f"{self.identity} has the labels {', '.join(map(repr, labels))}. Say which of them means that an answer is "
                f"good:  RewardModelJudge({str(self._path)!r}, label={labels[-1]!r})"
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"The tokenizer of {self.identity} has no padding token, so answers cannot be scored in batches. Set "
                "tokenizer.pad_token and save it into the folder."
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id  # else a causal classifier reads a row's padding
        return _Reader(model, tokenizer)


class _Reader:
    """A loaded model, and how it reads prompts with their answers."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        from aligner_chain.templates.plain import framing_twin

        self.model, self._tokenizer, self._window = model, tokenizer, _window(model, tokenizer)
        self._pairs = framing_twin(tokenizer)
        self._pairs.enable_truncation(self._window, strategy="longest_first")

    def inputs(self, rows: Sequence[tuple[Exchange, str]]) -> dict[str, torch.Tensor]:
        """The rows as tensors [answers, tokens], padded on the right."""
        import torch

        read = [self._ids(*row) for row in rows]
        longest = max(len(ids) for ids, _ in read)
        padded = [(ids, types, longest - len(ids)) for ids, types in read]
        inputs = {
            "input_ids": [ids + [self._tokenizer.pad_token_id] * missing for ids, _, missing in padded],
            "attention_mask": [[1] * len(ids) + [0] * missing for ids, _, missing in padded],
        }
        if "token_type_ids" in self._tokenizer.model_input_names:
            inputs["token_type_ids"] = [types + [0] * missing for _, types, missing in padded]
        return {name: torch.tensor(values, device=self.model.device) for name, values in inputs.items()}

    def _ids(self, prompt: Exchange, answer: str) -> tuple[list[int], list[int]]:
        """The token ids of one row, and for each the segment that it belongs to."""
        from aligner_chain.templates import chat_prompt

        if not self._tokenizer.chat_template:
            row = self._pairs.encode(whole(prompt.question), whole(answer))
            return row.ids, row.type_ids
        ids = chat_prompt(self._tokenizer, (*prompt.turns, Turn(role="assistant", text=answer)), answered=True)
        return list(ids[-self._window :]), [0] * min(len(ids), self._window)


def _window(model: PreTrainedModel, tokenizer: Tokenizer) -> int:
    """The most tokens that the model reads."""
    window = getattr(model.config, "max_position_embeddings", None)
    return int(min(window or tokenizer.model_max_length, tokenizer.model_max_length))


def _key(prompt: Exchange, answer: str) -> bytes:
    turns = [[turn.role, turn.text] for turn in prompt.turns]
    return hashlib.sha256(json.dumps([turns, answer]).encode()).digest()
