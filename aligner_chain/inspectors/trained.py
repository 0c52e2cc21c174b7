"""A small inspector that learns from labelled answers: hashed features of the texts, and a logistic regression.

An answer is right or wrong only relative to its question, so besides the answer's own words it looks at which of them come
with which words of the question. It reads no meaning: what it finds are the mistakes that an upstream repeats.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_chain import __version__
from aligner_chain.engines.loading import require_local
from aligner_chain.errors import CheckpointError, ConfigurationError
from aligner_chain.exchange import Exchange

if TYPE_CHECKING:
    import torch

FILE = "inspector.safetensors"
SCHEMA = "1"
"""Of the file and of the features: weights mean nothing with other features."""

SIZE = 2**18
"""Weights. Features whose hashes agree share one."""
_DECAY = 0.1
"""Of the squared weights, against the summed log-loss of answers whose features have length 1."""
_STEPS, _TOLERANCE = 100, 1e-4
"""Of the fit: it ends after so many steps, or where no derivative of the summed loss is larger."""
_ASKED, _SAID = 32, 256
"""Different words of the question (its last ones) and of the answer (its first) that are paired, so that long texts stay cheap."""
_WORDS = re.compile(r"\w+|[^\w\s]")
_MIX = 0x9E3779B1
"""An odd number that spreads hashes (D. E. Knuth, The Art of Computer Programming, volume 3, 6.4)."""


class TrainedInspector:
    """Judges an answer by its words, their neighbours, runs of three characters, and pairs with the question's words.

    Make one with `train` or `load`. `weights` has `SIZE` elements. It takes about a millisecond an answer and runs on the
    CPU; it needs torch and safetensors, which the extra `local` installs.
    """

    def __init__(self, weights: torch.Tensor, bias: float, *, criterion: str = "ok") -> None:
        self.weights, self.bias, self.criterion = weights, bias, criterion

    @classmethod
    def train(cls, exchanges: Sequence[Exchange], ok: Sequence[bool], *, criterion: str = "ok") -> TrainedInspector:
        """Learns from labelled answers; the same ones give the same inspector, since nothing is drawn.

        Holding out is the caller's matter. Split by prompt, so that all answers to one question are on one side, and
        calibrate and measure on answers that this has not seen: on those it learnt from it looks near perfect.

        Args:
            exchanges: Answers with their questions. One of a hundred words takes about 50 kB of memory.
            ok: For each whether its answer is all right.
            criterion: The name of what `ok` says.

        Raises:
            ConfigurationError: There is not one label for each, or no answer of one of the two kinds.
            MissingExtraError: torch is not installed.
        """
        if len(exchanges) != len(ok):
            raise ConfigurationError(f"There are {len(exchanges)} exchanges and {len(ok)} labels; give one for each.")
        if not any(ok) or all(ok):
            raise ConfigurationError(
                f"Of {len(ok)} answers {sum(map(bool, ok))} are labelled all right. To learn the difference takes some of "
                "both kinds, better hundreds of each."
            )
        require_local()
        weights, bias = _fitted([features(exchange) for exchange in exchanges], ok)
        return cls(weights, bias, criterion=criterion)

    def inspect(self, exchanges: Sequence[Exchange]) -> list[dict[str, float]]:
        return [{self.criterion: self._probability(features(exchange))} for exchange in exchanges]

    def save(self, folder: str | Path) -> None:
        """Writes the file `inspector.safetensors` into a folder; a reader sees the old one or the new one, never a part."""
        import torch
        from safetensors.torch import save

        told = {"schema": SCHEMA, "criterion": self.criterion, "package_version": __version__}
        tensors = {"weights": self.weights, "bias": torch.tensor([self.bias], dtype=torch.float64)}
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=FILE, delete=False) as file:
            file.write(save(tensors, metadata=told))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(Path(folder) / FILE)

    @classmethod
    def load(cls, folder: str | Path) -> TrainedInspector:
        """Reads what `save` wrote. Raises `CheckpointError` for anything else, and `MissingExtraError` without torch."""
        require_local()
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / FILE
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                if told.get("schema") != SCHEMA:
                    raise ValueError(f"its schema is {told.get('schema')!r}, and this version reads {SCHEMA!r} alone")
                weights, [bias] = file.get_tensor("weights"), file.get_tensor("bias").tolist()
            if weights.shape != (SIZE,) or not weights.isfinite().all() or not math.isfinite(bias):
                raise ValueError(f"its weights are not {SIZE} finite numbers and a bias")
            return cls(weights, bias, criterion=told["criterion"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is no inspector that can be used: {error}. Ways out: name the folder that TrainedInspector.save "
                "wrote, or train and save it anew with this version of aligner-chain."
            ) from error

    def _probability(self, found: Sequence[int]) -> float:
        import torch

        # Not below -700, where exp overflows: the probability is 0 to every digit.
        logit = float(self.weights[torch.tensor(found)].double().sum()) * _scale(len(found)) + self.bias
        return 1 / (1 + math.exp(-max(logit, -700.0)))


def features(exchange: Exchange) -> list[int]:
    """Which of the `SIZE` features an exchange has, in ascending order."""
    asked = [_hash(f"q {word}") for word in _distinct(exchange.question)[-_ASKED:]]
    words = _WORDS.findall(exchange.answer.lower())
    said = [_hash(f"a {word}") for word in dict.fromkeys(words)]
    neighbours = [_hash(f"n {first} {second}") for first, second in pairwise(("", *words, ""))]
    text = f" {' '.join(words)} "
    runs = [_hash(f"c {text[start : start + 3]}") for start in range(len(text) - 2)]
    pairs = [one * _MIX ^ other for one in asked for other in said[:_SAID]]
    return sorted({value % SIZE for value in (*said, *neighbours, *runs, *pairs)})


def _distinct(text: str) -> list[str]:
    return list(dict.fromkeys(_WORDS.findall(text.lower())))


def _hash(text: str) -> int:
    """The same number in every process, unlike Python's own hash."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _scale(count: int) -> float:
    """The value of each feature of an answer that has `count` of them, so that long answers weigh no more than short ones."""
    return 1 / math.sqrt(count)


def _fitted(rows: Sequence[Sequence[int]], ok: Sequence[bool]) -> tuple[torch.Tensor, float]:
    """The weights (float32, `SIZE`) and the bias of the least regularised log-loss, which is convex: there is one."""
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    columns = torch.tensor([column for row in rows for column in row])
    starts, scale = lengths.cumsum(0) - lengths, lengths.float().rsqrt()
    signs = torch.tensor([1.0 if one else -1.0 for one in ok])
    weights, bias = torch.zeros(SIZE), torch.zeros(1)
    fitting = torch.optim.LBFGS(
        [weights, bias], max_iter=_STEPS, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        sums = torch.nn.functional.embedding_bag(columns, weights[:, None], starts, mode="sum")[:, 0]
        margins = signs * (sums * scale + bias)
        pull = -signs * torch.sigmoid(-margins)  # the derivative of the log-loss by the logit
        # By hand, because autograd would take forty times as long over it.
        spread = torch.repeat_interleave(pull * scale, lengths)
        weights.grad = torch.zeros(SIZE).index_add_(0, columns, spread).add_(weights, alpha=_DECAY)
        bias.grad = pull.sum(0, keepdim=True)
        losses = torch.nn.functional.softplus(-margins).double().sum()
        return float(losses + _DECAY / 2 * weights.double().square().sum())

    with torch.no_grad():
        fitting.step(loss)  # type: ignore[no-untyped-call]
    return weights, float(bias)
