"""Real checkpoints that know one sentence each, so that every answer tells which version gave it, all of it.

The models have no attention and no memory: each token leads to the next one of the sentence. All sentences have the same
letters in another order, so that an answer that two versions wrote together is none of the sentences.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import vocabularies

from aligner_chain.checkpoint import AlignerMetadata, write_metadata
from aligner_chain.exchange import Correction
from aligner_chain.templates.own import FIX, OUTPUT
from bootstrap.registry import PairVersion, Registry, Version

ANSWERS = ("abc", "cba", "bac", "cab")
CORRECTIONS = ("xyz", "zyx", "yxz", "zxy")


def write_model(folder: Path, sentence: str, lead: Sequence[str], *, aligner: str = "") -> None:
    """A causal LM that goes on after the last token of `lead` with `sentence`, and then ends."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = vocabularies.byte_level()
    size = -(-len(tokenizer) // 8) * 8
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=size,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    steps = [*lead, *sentence, tokenizer.eos_token]
    with torch.no_grad():
        for weights in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj, model.lm_head):
            weights.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        for now, then in pairwise(tokenizer.convert_tokens_to_ids(steps)):
            model.lm_head.weight[then, now] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if aligner:
        write_metadata(folder, AlignerMetadata(name=aligner, version="1", template="aligner-chain/1"))


def write_models(folder: Path) -> Path:
    """Four upstreams and four Aligners, below `folder`."""
    for number, (answer, correction) in enumerate(zip(ANSWERS, CORRECTIONS, strict=True), 1):
        write_model(folder / "upstream" / str(number), answer, ["Ċ"])
        write_model(folder / "aligner" / str(number), correction, [OUTPUT, FIX], aligner=f"teller{number}")
    return folder


class Promoter:
    """A registry, to which models are added as they are asked for; `promote(3)` serves upstream 3 and Aligner 3.

    `answers` holds what the upstream of an identity says, `corrections` what the Aligner of a pair makes of it.
    """

    def __init__(self, home: Path, models: Path) -> None:
        self.registry, self._models = Registry(home), models
        self._versions: dict[tuple[str, int], Version] = {}
        self.answers: dict[str, str] = {}
        self.corrections: dict[str, str] = {}

    def promote(self, number: int, *, upstream: int | None = None) -> PairVersion:
        """Serves Aligner `number` with the upstream of the same number, or with another one."""
        answering = upstream or number
        chosen = self._version("upstream", answering)
        pair = self.registry.promote(chosen, self._version("aligner", number), figures={})
        self.answers[chosen.identity] = ANSWERS[answering - 1]
        self.corrections[str(pair.number)] = CORRECTIONS[number - 1]
        return pair

    def faults(self, corrections: Sequence[Correction]) -> list[str]:
        """What is wrong with corrections: nothing, where each is the whole work of one upstream and of one pair's Aligner."""
        return [fault for one in corrections if (fault := self._fault(one))]

    def _fault(self, one: Correction) -> str:
        asked = one.exchange
        aligner = f"teller{CORRECTIONS.index(one.text) + 1}@1" if one.text in CORRECTIONS else ""
        right = (self.answers.get(asked.upstream or ""), self.corrections.get(one.pair or ""), aligner)
        if (asked.answer, one.text, one.aligner) != right:
            return f"{asked.upstream} said {asked.answer}, pair {one.pair} with {one.aligner} made it {one.text}"
        return ""

    def _version(self, kind: Any, number: int) -> Version:
        if (kind, number) not in self._versions:
            source = self._models / kind / str(number)
            self._versions[kind, number] = self.registry.add(
                kind, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True), {}
            )
        return self._versions[kind, number]


class Tally:
    """The corrections that came in, from any thread; `wait_for` waits until so many are of a pair."""

    def __init__(self) -> None:
        self.corrections: list[Correction] = []
        self.pairs: Counter[str | None] = Counter()
        self._more = threading.Condition()

    def __call__(self, correction: Correction) -> None:
        with self._more:
            self.corrections.append(correction)
            self.pairs[correction.pair] += 1
            self._more.notify_all()

    def wait_for(self, count: int, pair: str | None = None, timeout: float = 120) -> bool:
        """Whether so many came in time (of a pair; None: of all)."""
        with self._more:
            return self._more.wait_for(
                lambda: (len(self.corrections) if pair is None else self.pairs[pair]) >= count, timeout
            )
