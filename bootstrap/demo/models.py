"""Small models from nothing: a tokenizer trained on the world's text and Llamas of about half a million parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aligner_chain.templates import prepare_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_UNITS = r"(?:(?<= the)|(?<= The)|(?<=^The)|(?<= a)|(?<= my)|(?<=^My)|(?<= this)) [a-z]+| ?[0-9]+|[.?!,:]"
"""What stands alone as a token: numbers, marks, and the word after an article."""


def new_tokenizer(texts: Iterable[str], *, vocabulary: int = 1100) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with a chat template and the Aligner's special tokens.

    Merges may cross spaces (Liu et al. 2025, arXiv 2503.13423), so that a stock phrase is one token: that halves the
    length of the desk's texts, and with it the time of everything on two cores.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_UNITS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    prepare_tokenizer(wrapped)
    return wrapped


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, hidden: int = 96, layers: int = 3, window: int = 384
) -> LlamaForCausalLM:
    """A Llama with random weights for this tokenizer; 96 wide and 3 deep it has about 0.45 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        # At this width the usual 0.02 leaves attention flat for most of so short a training.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)
