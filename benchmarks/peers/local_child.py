"""The decoders of transformers and of this package behind a pipe, for run.py.

python benchmarks/peers/local_child.py FOLDER '{"window": 384, "ends": [1, 2], "lead": [3], "choices": [2, 3]}'
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from vllm_child import Counter, Message, serve

from aligner_chain.bench.models import twin
from aligner_chain.engines.base import Draft, Generation, Request
from aligner_chain.engines.huggingface import HuggingFaceEngine
from aligner_chain.engines.loading import load

Ids = list[list[int]]
PAGES = 2
"""Pages of 256 tokens that a row of the support desk may fill in the paged cache of `generate_batch`."""


class Local:
    """Each decoder has a model of its own with the same weights, so that nothing one sets on it reaches the others."""

    def __init__(self, folder: str, given: Mapping[str, Any], count: Counter) -> None:
        torch.set_num_threads(1)
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it warns of a manager that is kept
        self._given = given
        model, tokenizer = load(folder, revision=None, device="cpu", dtype="float32")
        self._engine = HuggingFaceEngine(twin(model), tokenizer)
        self._models = {name: twin(model) for name in ("hf_generate", "hf_generate_batch")}
        for one in (self._engine.model, *self._models.values()):
            count.watch(one)

    def about(self) -> Message:
        versions = {package: version(package) for package in ("torch", "transformers")}
        return {"versions": versions, "threads": torch.get_num_threads()}

    def decode(self, request: Message) -> Ids:
        decoder = {"aligner_chain": self._ours, "hf_generate_batch": self._continuous}
        return decoder.get(request["decoder"], self._generate)(request)

    def _generate(self, request: Message) -> Ids:
        """`generate` on all rows at once, padded on the left."""
        prompts = request["prompts"]
        width = max(map(len, prompts))
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        output = self._models["hf_generate"].generate(
            torch.tensor(padded), attention_mask=torch.tensor(mask), generation_config=self._greedy(request)
        )
        return [line.tolist() for line in output[:, width:]]

    def _continuous(self, request: Message) -> Ids:
        """`generate_batch` with a manager that is kept and a cache no larger than needed, as a server would have it."""
        results = self._models["hf_generate_batch"].generate_batch(
            request["prompts"],
            generation_config=self._greedy(request),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=PAGES * len(request["prompts"])),
            persistent_manager=True,
        )
        return [list(result.generated_tokens) for result in results.values()]

    def _greedy(self, request: Message) -> GenerationConfig:
        settings = {"max_new_tokens": max(request["max_new"]), "do_sample": False, "pad_token_id": 0}
        return GenerationConfig(eos_token_id=self._given["ends"], **settings, **request["settings"])

    def _ours(self, request: Message) -> Ids:
        """What `Aligner` submits for these prompts, without a threshold for KEEP."""
        rows = zip(request["prompts"], request["max_new"], request["drafts"], strict=True)
        tickets = self._engine.submit([self._request(*row) for row in rows])
        return [self._written(ticket.result()) for ticket in tickets]

    def _request(self, prompt: list[int], most: int, draft: Mapping[str, Any]) -> Request:
        keep, fix = self._given["choices"]
        spans = tuple((start, end) for start, end in draft["spans"])
        return Request(
            key="",
            prompt=tuple(prompt),
            max_new=most,
            draft=Draft(ids=tuple(draft["ids"]), spans=spans, lead=(fix,)),
            choices=(keep, fix),
            stop_ids=(keep,),
        )

    def _written(self, generation: Generation) -> list[int]:
        """With the verdict that ended it, which the others write as well."""
        return [*generation.ids, *(self._given["choices"][:1] if generation.finish == "stop" else [])]


def main() -> None:
    folder, given = sys.argv[1:]
    serve(lambda count: Local(folder, json.loads(given), count))


if __name__ == "__main__":
    main()
