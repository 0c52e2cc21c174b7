"""Models with random weights and the shapes of small Aligners, and a tokenizer for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aligner_chain.bench.workloads import BOS, EOS, FIRST, PAD, PERIOD, VOCABULARY

WINDOW = 4096

_SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 768},
    "100m": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 16384,
    },
}


def new_model(name: str, dtype: str, seed: int) -> Any:
    """A Llama with random weights and SDPA. `dtype` "auto" is bfloat16 where the processor multiplies it, else float32."""
    torch.manual_seed(seed)
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    shape = {"vocab_size": VOCABULARY, **_SHAPES[name]}
    common = {"max_position_embeddings": WINDOW, "tie_word_embeddings": True, "attn_implementation": "sdpa"}
    config = LlamaConfig(**shape, **special, **common)
    return LlamaForCausalLM(config).eval().to(getattr(torch, _fast() if dtype == "auto" else dtype))


def twin(model: Any) -> Any:
    """Another model with the very same weights, so that nothing one decoder sets on its model reaches the others."""
    shared = {id(weight): weight for weight in model.parameters()}
    return copy.deepcopy(model, shared)


def new_tokenizer() -> Any:
    """One word for each token id; those that end a sentence end with a full stop."""
    words = [f"w{token}." if PERIOD <= token < FIRST else f"w{token}" for token in range(VOCABULARY)]
    vocabulary = {word: token for token, word in enumerate(words)}
    return fast(Tokenizer(WordLevel(vocabulary, unk_token=words[PAD])), words)


def fast(tokenizer: Tokenizer, special: Sequence[str]) -> Any:
    """A tokenizer as an engine takes it; `special` are the spellings of the first ids."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[PAD], bos_token=special[BOS], eos_token=special[EOS]
    )


def processor() -> Mapping[str, Any]:
    """What torch knows of the processor; nothing where torch is too old to tell."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def _fast() -> str:
    able = processor()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
