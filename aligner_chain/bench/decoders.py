"""The decoders that are compared: each takes the rows of a case and returns the token ids it wrote, without EOS."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

from aligner_chain.bench.forcing import Forcing
from aligner_chain.bench.models import WINDOW, twin
from aligner_chain.bench.workloads import EOS, FIX, KEEP, MOST_ROWS, PAD, WARM_UP, Case, Row
from aligner_chain.engines.base import Draft, Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.onednn import pack

Ids = tuple[int, ...]

_PAGES = 2
"""Pages of 256 tokens, of which two hold any row of the workloads with batches."""


class Decoder(Protocol):
    """`forcing` watches the model that it decodes on; `settings` are told beside its figures; `warm_up` is a number of cases."""

    name: str
    warm_up: int
    forcing: Forcing
    settings: dict[str, int]

    def prepare(self, case: Case) -> None:
        """What is not part of decoding: says what the model has to write."""

    def decode(self, case: Case) -> list[Ids]: ...

    def close(self) -> None: ...


class Generate:
    """`model.generate`, greedy, one row after the other; with `settings` as options of its generation."""

    warm_up = 1

    def __init__(self, name: str, model: Any, **settings: int) -> None:
        self.name, self.settings = name, settings
        self._model = twin(model)
        self.forcing = Forcing(self._model, WINDOW)
        self._done: list[Ids] = []

    def prepare(self, case: Case) -> None:
        # Tokens tell their row only among the rows of the whole case, which are prescribed together.
        self.forcing.prescribe(case)

    def decode(self, case: Case) -> list[Ids]:
        return [self._written(row) for row in case]

    def close(self) -> None:
        """Nothing is held open."""

    def _written(self, row: Row) -> Ids:
        prompt = torch.tensor([row.prompt])
        output = self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=_greedy([row], **self.settings)
        )
        return _cut(output[0, len(row.prompt) :].tolist())


class GenerateBatch(Generate):
    """`model.generate` on all rows at once, padded on the left."""

    def decode(self, case: Case) -> list[Ids]:
        width = max(len(row.prompt) for row in case)
        padded = [[PAD] * (width - len(row.prompt)) + [*row.prompt] for row in case]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in case]
        output = self._model.generate(
            torch.tensor(padded), attention_mask=torch.tensor(mask), generation_config=_greedy(case)
        )
        return [_cut(line) for line in output[:, width:].tolist()]


class ContinuousBatching(Generate):
    """`model.generate_batch`: paged cache, rows join and leave a running batch.

    Its manager is kept from call to call, as a server would keep it, and its cache is no larger than the rows need;
    by default each call makes one that fills most of the memory, which takes longer than decoding.
    """

    def decode(self, case: Case) -> list[Ids]:
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns of the manager that is kept
        results = self._model.generate_batch(
            [list(row.prompt) for row in case],
            generation_config=_greedy(case),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=_PAGES * len(case)),
            persistent_manager=True,
        )
        return [_cut(result.generated_tokens) for result in results.values()]


class Ours:
    """The engine of this package behind its seam, its queue and thread included. `draft=False`: the answer is not told.

    With `verdict` the model writes KEEP, and what is served then is the answer.
    """

    warm_up = WARM_UP

    def __init__(self, name: str, model: Any, tokenizer: Any, *, draft: bool, verdict: bool, callers: bool) -> None:
        self.name = name
        self.settings: dict[str, int] = {}
        self._draft, self._verdict = draft, verdict
        own = twin(model)
        self.forcing = Forcing(own, WINDOW)
        self._engine = HuggingFaceEngine(own, tokenizer)
        self._callers = ThreadPoolExecutor(MOST_ROWS) if callers else None

    def prepare(self, case: Case) -> None:
        self.forcing.prescribe(case, verdict=KEEP if self._verdict else None)

    def decode(self, case: Case) -> list[Ids]:
        requests = [self._request(row, f"{number}") for number, row in enumerate(case)]
        if self._callers is not None:
            return list(self._callers.map(self._one, case, requests))
        tickets = self._engine.submit(requests)
        return [self._served(row, ticket.result()) for row, ticket in zip(case, tickets, strict=True)]

    def close(self) -> None:
        self._engine.close()
        if self._callers is not None:
            self._callers.shutdown()

    def _one(self, row: Row, request: Request) -> Ids:
        [ticket] = self._engine.submit([request])
        return self._served(row, ticket.result())

    def _request(self, row: Row, key: str) -> Request:
        lead, choices, stop_ids = ((FIX,), (KEEP, FIX), (KEEP,)) if self._verdict else ((), (), ())
        draft = Draft(ids=row.answer, spans=row.spans, lead=lead) if self._draft else None
        return Request(key=key, prompt=row.prompt, max_new=row.max_new, draft=draft, choices=choices, stop_ids=stop_ids)

    @staticmethod
    def _served(row: Row, generation: Any) -> Ids:
        return row.answer if generation.finish == "stop" else tuple(generation.ids)


class BareForwards:
    """Not a decoder: the forwards that another made, of the same shapes, without anything between them.

    It runs on a plain cache and only for one row; what `decoder` takes longer is what it spends beside its forwards.
    """

    name = "bare_forwards"
    warm_up = 1

    def __init__(self, decoder: Decoder, model: Any) -> None:
        self.settings: dict[str, int] = {}
        self._decoder, self._model = decoder, twin(model)
        pack(self._model)  # as the engine has it, and in inference mode as there
        self.forcing = Forcing(self._model, WINDOW)
        self._calls: Sequence[tuple[int, int, int]] = ()
        self._ids = torch.zeros(0)

    def prepare(self, case: Case) -> None:
        self.forcing.prescribe(case)
        self._calls = self._decoder.forcing.counts.calls
        [row] = case
        # Tokens as different as those of a text: products of equal rows cost a little less.
        self._ids = torch.tensor([*row.prompt, *row.correction]).repeat(WINDOW)[:WINDOW]

    def decode(self, case: Case) -> list[Ids]:
        cache, length = DynamicCache(config=self._model.config), 0
        for fed, first, kept in self._calls:
            if first < length:
                cache.crop(first - length)
            places = torch.arange(first, first + fed)[None]
            with torch.inference_mode():
                self._model(
                    input_ids=self._ids[places], position_ids=places, past_key_values=cache, logits_to_keep=kept
                )
            length = first + fed
        return []

    def close(self) -> None:
        """Nothing is held open."""


def _greedy(rows: Sequence[Row], **settings: int) -> Any:
    longest = max(row.max_new for row in rows)
    return GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=EOS, pad_token_id=PAD, **settings)


def _cut(ids: Sequence[int]) -> Ids:
    """What stands before EOS."""
    return tuple(ids[: ids.index(EOS)] if EOS in ids else ids)
