"""A model that writes what is prescribed, whatever its weights: it works as ever, and one logit per place is raised.

So decoders can be compared on the corrections of a trained Aligner, exact copies included, without having one; and what
each of them writes can be held against what it had to write.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aligner_chain.bench.workloads import EOS, Row

_RAISE = 1e4
"""Far more than any logit of a random model."""


@dataclass(slots=True)
class Counts:
    """What the model did. `calls` holds the tokens fed, first position and logits kept of each forward.

    `cpu_s` and `wall_s` are what counting and forcing took themselves, to be taken off the decoder's time.
    """

    forwards: int = 0
    fed: int = 0
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Forcing:
    """Watches every forward of a model, also those of other threads, and prescribes what it writes.

    The token after a place is prescribed where the token there is the right one; behind a wrong one the model's own
    logits stand, so that a decoder learns nothing from a place that it reached by a wrong draft. The caller passes
    `input_ids` by name, of shape [rows, places], `position_ids` where they do not count from 0, and may cut the logits
    with `logits_to_keep`.
    """

    def __init__(self, model: torch.nn.Module, window: int) -> None:
        self._window = window
        self._table = torch.full((1, window), -1)
        self.counts = Counts()
        model.register_forward_hook(self._force, with_kwargs=True)

    def prescribe(self, rows: Sequence[Row], verdict: int | None = None) -> None:
        """Row b will be written by the tokens that leave b when divided by the number of rows. Counts start anew.

        With `verdict` that token is the whole output.
        """
        self._table = torch.full((len(rows), self._window), -1)
        for line, row in zip(self._table, rows, strict=True):
            output = row.correction if verdict is None else (verdict,)
            sequence = torch.tensor([*row.prompt, *output, EOS])
            line[: len(sequence)] = sequence
        self.counts = Counts()

    def _force(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        ids: torch.Tensor = kwargs["input_ids"]
        positions = kwargs.get("position_ids")
        positions = (torch.arange(ids.shape[-1]) if positions is None else positions).expand_as(ids)
        self._raise(ids, positions, kwargs.get("logits_to_keep", 0), output.logits)
        self.counts.forwards += 1
        self.counts.fed += ids.numel()
        self.counts.calls.append((ids.shape[-1], int(positions.min()), output.logits.shape[1]))
        self.counts.cpu_s += time.thread_time() - cpu
        self.counts.wall_s += time.perf_counter() - wall

    def _raise(self, ids: torch.Tensor, positions: torch.Tensor, kept: Any, logits: torch.Tensor) -> None:
        """Raises the logits [rows, kept, vocabulary] of what has to follow the right tokens among those kept."""
        columns = kept if isinstance(kept, torch.Tensor) else slice(-kept, None)
        ids, positions = ids[:, columns], positions[:, columns]
        rows = ids % len(self._table)
        following = self._table[rows, (positions + 1).clamp(max=self._window - 1)]
        right = (self._table[rows, positions] == ids) & (following >= 0)
        logits.scatter_add_(-1, following.clamp(min=0)[..., None], (right * _RAISE)[..., None].to(logits.dtype))
