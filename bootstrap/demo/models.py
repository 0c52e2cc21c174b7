"""Small models from nothing: a tokenizer trained on the world's text and Llamas of about half a million parameters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aligner_chain.templates import prepare_tokenizer

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_HEADS = 4
_CHAT_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_UNITS = (
    r"(?:(?<= the)|(?<= The)|(?<=^The)|(?<= a)|(?<= my)|(?<=^My)|(?<= this)) [a-z]+|(?<=,) [A-Z][a-z]+| ?[0-9]+|[.?!]"
    r"|[^.?!:]+:"
)
"""What no phrase reaches across: numbers, names, the word after an article, the ends of sentences, and colons."""


def new_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with a chat template and the Aligner's special tokens.

    First words are learned, then phrases that occur often (SuperBPE, Liu et al. 2025, arXiv 2503.13423). A stock phrase
    is one token then, which halves the length of the desk's answers and with it the time of everything on two cores; a
    question in a new wording falls apart into words, not into letters.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = _word_tokenizer(texts)
    units = pre_tokenizers.Split(Regex(_UNITS), "isolated")
    chunks = Counter(chunk for text in texts for chunk, _ in units.pre_tokenize_str(text))
    phrases = _phrase_merges({tuple(words.encode(chunk).tokens): count for chunk, count in chunks.items()})
    learned = json.loads(words.to_str())["model"]
    vocabulary = learned["vocab"]
    for first, second in phrases:
        vocabulary.setdefault(first + second, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, [(one, two) for one, two in learned["merges"]] + phrases))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [units, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", extra_special_tokens=_CHAT_TOKENS
    )
    wrapped.chat_template = CHAT_TEMPLATE
    prepare_tokenizer(wrapped)
    return wrapped


def _word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        special_tokens=["<|pad|>", "<|end|>", *_CHAT_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _phrase_merges(chunks: dict[tuple[str, ...], int], least: int = 150) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding over words: the most frequent pair of neighbours first, none below `least`."""
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for chunk, count in chunks.items():
            for pair in pairwise(chunk):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < least:
            return merges
        merges.append(best)
        chunks = {_joined(chunk, best): count for chunk, count in chunks.items()}


def _joined(chunk: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    tokens: list[str] = []
    for token in chunk:
        if tokens and (tokens[-1], token) == pair:
            tokens[-1] += token
        else:
            tokens.append(token)
    return tuple(tokens)


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, hidden: int = 96, layers: int = 4, window: int = 384
) -> LlamaForCausalLM:
    """A Llama with random weights for this tokenizer; 96 wide and 4 deep it has about 0.6 million parameters."""
    import torch

    model = _random_llama(tokenizer, seed, hidden, layers, window)
    with torch.no_grad():
        # Makes logits four times as far apart. A wrong token has to be many nats behind before an answer of twenty
        # tokens, sampled at temperature 1, is rarely garbled, and so short a training moves them too slowly.
        model.model.norm.weight.fill_(4.0)
    return model


def new_reader(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, hidden: int = 96, window: int = 384
) -> LlamaForCausalLM:
    """A Llama that starts out able to look things up: what followed a name in a passage, after the same name again.

    Plain random weights stay at guessing among the passages for longer than a demo lasts. So the first layer starts by
    mixing the last tokens, the second by attending to where the same tokens were, and heads by copying what they
    attend to, as in mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828). All of it is trained on.
    """
    import torch

    model = _random_llama(tokenizer, seed, hidden, 4, window, attention_bias=True)
    with torch.no_grad():
        # A token's own embedding must not drown in what the layers add to it.
        model.model.embed_tokens.weight.mul_(6.0)
        recent = _orthogonal(hidden)[: hidden // _HEADS]
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.3)
            _copy_attended(layer.self_attn, _orthogonal(hidden))
        _mix_recent(model.model.layers[0].self_attn, recent)
        _match_recent(model.model.layers[1].self_attn, recent)
    return model


def _copy_attended(attention: Any, basis: torch.Tensor) -> None:
    attention.v_proj.weight.copy_(basis)
    attention.o_proj.weight.copy_(basis.T)


def _mix_recent(attention: Any, basis: torch.Tensor, peak: float = 5.0, theta: float = 10_000.0) -> None:
    """Head h attends to the token h before, by its biases alone, and writes it in `basis`, the same for all heads."""
    import torch

    size = len(basis)
    # Only the fast rotations tell neighbouring positions apart.
    fast = (torch.arange(size // 2) < size // 6).float()
    turns = theta ** (-torch.arange(size // 2) / (size // 2))
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)
    for head in range(_HEADS):
        rows = slice(head * size, (head + 1) * size)
        attention.k_proj.bias[rows] = torch.cat([peak * fast, torch.zeros(size // 2)])
        attention.q_proj.bias[rows] = peak * torch.cat([fast * (head * turns).cos(), -fast * (head * turns).sin()])
        attention.v_proj.weight[rows] = basis
        attention.o_proj.weight[:, rows] = basis.T


def _match_recent(attention: Any, basis: torch.Tensor) -> None:
    """All heads attend to where the recent tokens are the same as here."""
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(basis.repeat(_HEADS, 1))


def _orthogonal(size: int) -> torch.Tensor:
    import torch

    basis: torch.Tensor = torch.linalg.qr(torch.randn(size, size))[0]
    return basis


def _random_llama(
    tokenizer: PreTrainedTokenizerFast, seed: int, hidden: int, layers: int, window: int, **changes: Any
) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        # At this width the usual 0.02 leaves attention flat for most of so short a training.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )
    return LlamaForCausalLM(config)
