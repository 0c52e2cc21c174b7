"""What every test shares: no network, a tiny tokenizer and tiny models made on the spot."""

from __future__ import annotations

import os

# Before anything imports transformers or datasets: they read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # the models are so small that threads cost more than they help
    "TRACKIO_DISABLED": "1",
    "WANDB_DISABLED": "true",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
}

import functools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes is the machine's, which others use too.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _no_network() -> None:
    """Refuses every connection but one to this machine."""
    from pytest_socket import socket_allow_hosts

    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)


@pytest.fixture
def tokenizer() -> Any:
    """A byte-level tokenizer without merges: every byte is a token. It is lossless and has a chat template."""
    return _byte_tokenizer()


@pytest.fixture
def prepared(tokenizer: Any) -> Any:
    """The tokenizer with the special tokens of aligner-chain/1."""
    from aligner_chain.templates import prepare_tokenizer

    prepare_tokenizer(tokenizer)
    return tokenizer


@pytest.fixture
def playing(prepared: Any) -> Callable[..., Any]:
    """Makes an Aligner whose engine plays a text, token by token, as far as its `beats` were released."""
    from playback import playing_aligner

    return functools.partial(playing_aligner, prepared)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[], Any]:
    """Makes a tokenizer like `tokenizer`, for fixtures of a wider scope."""
    return _byte_tokenizer


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """Makes a random Llama (hidden 32, 2 layers) for a tokenizer, always the same for the same settings."""
    return _tiny_llama


def _byte_tokenizer() -> Any:
    from vocabularies import unprepared

    return unprepared()


def _tiny_llama(tokenizer: Any, *, dtype: str = "float64", seed: int = 0, **settings: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    # Weights so large that the best token is never a near-tie.
    shape: dict[str, Any] = {"max_position_embeddings": 256, "initializer_range": 0.4}
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**shape, **settings},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Of random logits the largest is far above 0, so the model does not end by itself.
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    return model.to(getattr(torch, dtype)).eval()
