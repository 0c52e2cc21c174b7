r"""The drafter as a plug-in of vLLM, so that a server's correction costs a few forwards too.

    vllm serve DIR --speculative-config \
        '{"method": "custom_class", "model": "aligner_chain.vllm.AnswerDrafter", "num_speculative_tokens": 64}'

vLLM verifies what is proposed, so the text is that of plain decoding. It takes one line of tokens and no comb of branches,
and asks only from the second token on: an answer that is kept costs the prompt and one token, one that is corrected at least
one forward more.

It is loaded into vLLM's own environment: this package without extras is enough there. The answer is found in the prompt by
the special tokens of aligner-chain/1; for a model of another template nothing is proposed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_chain.engines.drafting import CPU_BF16, Drafter, Habits
from aligner_chain.errors import ConfigurationError
from aligner_chain.templates.own import ANSWER, FIX, OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

ROWS = 4096
"""Rows whose place in their answer is remembered, beyond those that a server runs at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The ids between which a prompt of aligner-chain/1 holds the answer, the verdict that corrects, and the end."""

    answer: int
    output: int
    fix: int
    end: int


@dataclass(slots=True)
class _Row:
    """A request that is being decoded: its drafter has seen so many tokens of its output."""

    drafter: Drafter
    seen: int = 0


class AnswerDrafter:
    """What vLLM's `custom_class` names: it is made with vLLM's configuration, and asked for drafts after every step.

    Raises:
        ConfigurationError: the model's folder has no `tokenizer.json` that could be read, or the model no end of text.
    """

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        model = vllm_config.model_config
        frame = read_frame(Path(model.tokenizer), _first(model.hf_config.eos_token_id))
        if frame is None:
            _LOG.warning("%s has no tokens of aligner-chain/1, so nothing is drafted for it.", model.tokenizer)
        most = vllm_config.speculative_config.num_speculative_tokens
        self._drafts = None if frame is None else Drafts(frame, most)

    def load_model(self, *_: Any, **__: Any) -> None:
        """There is no second model."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int],
        token_ids_cpu: NDArray[np.integer[Any]],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """One draft for each row of the batch, as vLLM's n-gram proposer has it.

        Args:
            sampled_token_ids: what each row was given in this step; nothing while its prompt is being read.
            num_tokens_no_spec: how many tokens of each row are known, those of this step with them.
            token_ids_cpu: all rows' tokens, of shape (rows, window).
        """
        if self._drafts is None:
            return [[] for _ in sampled_token_ids]
        return [
            self._drafts.propose(token_ids_cpu[row, : int(num_tokens_no_spec[row])]) if sampled else []
            for row, sampled in enumerate(sampled_token_ids)
        ]


def read_frame(folder: Path, end: int) -> Frame | None:
    """The ids of the template in a model's folder; None where its tokenizer does not know them all."""
    try:
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The drafter reads the template's tokens in {folder / 'tokenizer.json'}, and that failed: {error}. Serve the "
            "Aligner from a local folder, or leave --speculative-config out."
        ) from error
    added: Mapping[str, int] = {token["content"]: token["id"] for token in spec["added_tokens"]}
    if not {ANSWER, OUTPUT, FIX} <= added.keys():
        return None
    return Frame(answer=added[ANSWER], output=added[OUTPUT], fix=added[FIX], end=end)


def _first(ids: int | Sequence[int]) -> int:
    return ids if isinstance(ids, int) else ids[0]


class Drafts:
    """Proposes how the outputs of a batch go on. What it knows of a row it finds again by the row's prompt.

    Args:
        frame: where an answer stands.
        most: most tokens of a proposal.
    """

    def __init__(self, frame: Frame, most: int) -> None:
        self._frame, self._most, self._habits = frame, most, Habits()
        self._rows: dict[bytes, _Row] = {}  # in the order of use

    def propose(self, tokens: NDArray[np.integer[Any]]) -> list[int]:
        """What probably follows; nothing where this is no prompt of the template, or its answer is kept.

        Args:
            tokens: the row so far, prompt and output, of shape (n,).
        """
        outputs = (tokens == self._frame.output).nonzero()[0]
        if not len(outputs):
            return []
        start = int(outputs[-1]) + 1
        output = tokens[start:].tolist()
        if not output or output[0] != self._frame.fix:
            return []
        drafter = self._drafter(tokens[:start], output)
        branches = drafter.propose(self._most)
        return list(branches[0]) if branches else []

    def _drafter(self, prompt: NDArray[np.integer[Any]], output: Sequence[int]) -> Drafter:
        """The drafter of the row, which has read the output.

        A row that vLLM set aside and runs again, or one whose prompt two requests share, may be behind what was seen: it is
        read anew.
        """
        key = prompt.tobytes()
        row = self._rows.pop(key, None)
        if row is None or row.seen >= len(output):
            row = _Row(self._new(prompt.tolist()))
        self._rows[key] = row
        if len(self._rows) > ROWS:
            del self._rows[next(iter(self._rows))]
        row.drafter.advance(output[row.seen :])
        row.seen = len(output)
        return row.drafter

    def _new(self, prompt: list[int]) -> Drafter:
        start = len(prompt) - prompt[::-1].index(self._frame.answer)
        original = (self._frame.fix, *prompt[start:-1], self._frame.end)
        return Drafter(original, context=prompt, curve=CPU_BF16, first=None, habits=self._habits)
