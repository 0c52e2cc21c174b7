"""The upstream of the loop: a small Llama from nothing that ends sentences as the rude side of ParaDetox does."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import real
from endings import asked, cut
from report import Figures

from aligner_chain.templates import chat_prompt, encode
from bootstrap.demo.models import CHAT_TEMPLATE, new_model
from bootstrap.demo.start import EXTRA as EXTRA
from bootstrap.sft import Row, TrainingSettings, train_rows

WORDS = 3000
"""The tokenizer's vocabulary: with fewer, letters of rare words are put together to words that there are not."""
SIZE: Mapping[str, int] = {"hidden": 96, "layers": 3, "window": 96}
TRAINING: Mapping[str, float] = {"epochs": 5.0, "learning_rate": 3e-3, "warmup": 0.1}


def trained(folder: Path, sentences: Sequence[str], seed: int) -> Figures:
    """Trains once, into this folder; says what it took."""
    stored = folder / "training.json"
    if not stored.exists():
        stored.write_text(json.dumps(_train(folder, sentences, seed)), encoding="utf-8")
    return {"words": WORDS, **SIZE, **TRAINING, **json.loads(stored.read_text(encoding="utf-8"))}


def training(seed: int, **settings: Any) -> TrainingSettings:
    """Settings for small models of random weights."""
    return TrainingSettings(seed=seed, bucketed=True, threads=1, save_every=0, extra=EXTRA, **settings)


def _train(folder: Path, sentences: Sequence[str], seed: int) -> Figures:
    began, tokenizer = time.process_time(), tokenizer_of(sentences)
    end = (int(tokenizer.eos_token_id),)
    rows = [
        Row(prompt=chat_prompt(tokenizer, asked(beginning)), output=encode(tokenizer, ending) + end)
        for beginning, ending in map(cut, sentences)
    ]
    model = new_model(tokenizer, seed=seed, **SIZE)
    model = train_rows(model, tokenizer, rows, folder / "work", training(seed, **TRAINING))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "rows": len(rows), "cpu_s": round(time.process_time() - began)}


def tokenizer_of(texts: Sequence[str]) -> Any:
    """That of the Aligners here, with a chat template."""
    tokenizer = real.new_tokenizer(texts, WORDS)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
