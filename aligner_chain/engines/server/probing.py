"""What a server says of itself, what it turns out to do, and whether its model is the one that is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from aligner_chain.engines.server.completions import Abilities, Answer, Json, Question
from aligner_chain.engines.server.tokenizing import FastTokenizer
from aligner_chain.engines.server.wire import Wire
from aligner_chain.errors import ModelNotServedError, ServerError, ServerMismatchError
from aligner_chain.exchange import Exchange
from aligner_chain.templates import SPECIAL_TOKENS, CorrectionTemplate, Rendered

PROBE = Exchange.of("Is it open on Sunday?", "It is open from 9 to 5.")
"""What a server is asked before the first answer."""
SPELLING = "Is it 12,345.67 or naïve café? 東京 Ünïcödé \n\n\tdef f(x): return x**2  # don't 😀"
"""A text on whose tokens two tokenizers hardly agree by chance."""
MOST_LOGPROBS = (20, 5, 1)
"""Most likely tokens that servers tell of: vLLM's default, OpenAI's, and the fewest."""
REFUSED = (400, 404, 405, 422, 501)
"""How servers answer a request for what they do not do."""
FAILED = 500
"""And how vLLM 0.32 does where it is asked for log-probabilities by name while it drafts; without names it tells of them."""


CACHE = "vllm:cache_config_info{"
"""How the line begins in which vLLM tells of its prefix cache."""
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a server says of a model: its window, the folder or hub id that it was loaded from, and if it is an adapter."""

    model: str
    window: int | None = None
    root: str | None = None
    adapter: bool = False


async def card(wire: Wire, url: str, model: str) -> Card:
    """What `/v1/models` says of the model; a server without that list is taken at its word.

    Raises `ModelNotServedError` where it serves other models only, and `ServerError` where it cannot be asked.
    """
    try:
        said = await wire.get(f"{url}/models")
    except ServerError as error:
        if error.status in (401, 403):
            raise ServerError(
                f"{str(error).rstrip('.')}. Set its key:  export ALIGNER_API_KEY=...", status=error.status
            ) from error
        if error.status in REFUSED:
            return Card(model=model)
        raise
    rows = said.get("data") if isinstance(said, dict) else None
    known = {str(row.get("id")): row for row in rows or () if isinstance(row, dict)}
    if not known:
        return Card(model=model)
    if model not in known:
        raise ModelNotServedError(
            f"{url} serves no model {model!r}, but {', '.join(sorted(known))}. Pass one of these as model=, or name it when "
            f"the server is started:  vllm serve FOLDER --served-model-name {model}"
        )
    # vLLM tells the window of an adapter in the row of the model that it is loaded on.
    base = known.get(str(known[model].get("parent")), {})
    window, root = known[model].get("max_model_len") or base.get("max_model_len"), known[model].get("root")
    return Card(
        model=model,
        window=window if isinstance(window, int) else None,
        root=root if isinstance(root, str) else None,
        adapter=known[model].get("parent") is not None,
    )


async def prefix_block(wire: Wire, url: str) -> int:
    """Tokens in a block of the server's prefix cache, as vLLM says in its `/metrics`; 0 where it has none or does not say."""
    try:
        told = await wire.text(f"{url.removesuffix('/v1')}/metrics")
    except ServerError:
        return 0
    labels = [dict(_LABEL.findall(line)) for line in told.splitlines() if line.startswith(CACHE)]
    blocks = [one.get("block_size", "") if one.get("enable_prefix_caching") == "True" else "" for one in labels]
    return max((int(one) if one.isdecimal() else 0 for one in blocks), default=0)


async def abilities(
    wire: Wire, url: str, told: Card, template: CorrectionTemplate, tokenizer: FastTokenizer
) -> Abilities:
    """What the server does, found out with a few requests of one token; and that its model is meant for the template.

    Of an adapter no log-probabilities of the prompt are asked for: vLLM reckons them with the adapters of other rows
    (vllm-project/vllm#16668), and on a CPU it ends where such a request meets another one in a batch.

    Raises `ServerMismatchError` for another tokenizer, or a model that does not follow the template, and `ServerError`
    where it cannot be asked.
    """
    model = told.model
    await _require_same_tokenizer(wire, url, model, tokenizer)
    rendered = template.render(PROBE, tokenizer, window=None)
    can, answer = await _asked(wire, url, model, rendered, tokenizer, _wishes(read=not told.adapter))
    if template.verdict and answer.ids and answer.ids[0] not in rendered.choices:
        [wrote] = tokenizer.convert_ids_to_tokens(answer.ids[:1])
        raise ServerMismatchError(
            f"{url}: {model} answers a prompt of {template.name} with the token {wrote!r} and not with a verdict. It runs "
            "another model than the checkpoint here, or one with another tokenizer, or one that was not trained for this "
            "template. Ways out: serve the Aligner's own folder, or name the template it was trained with (template=)."
        )
    return replace(can, stream=await _streams(wire, url, model, can, rendered.prompt)) if can.ids_out else can


async def _require_same_tokenizer(wire: Wire, url: str, model: str, tokenizer: FastTokenizer) -> None:
    """Compares tokens where the server has `/tokenize` (vLLM); what does not tell is not held against it."""
    text = SPELLING + "".join(SPECIAL_TOKENS)
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    try:
        said = await wire.post(f"{url.removesuffix('/v1')}/tokenize", body)
    except ServerError as error:
        if error.status is None or error.status in (429, 502, 503, 504):
            raise
        return
    told = said.get("tokens") if isinstance(said, dict) else None
    ours = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if isinstance(told, list) and told != ours:
        at = next((at for at, both in enumerate(zip(told, ours, strict=False)) if both[0] != both[1]), len(ours))
        raise ServerMismatchError(
            f"{url} has another tokenizer for {model} than the checkpoint here: they differ from token {at} on (there "
            f"{told[at : at + 3]}, here {list(ours[at : at + 3])}). Ways out: pass the folder that the server was started "
            "with as checkpoint=, or start the server with that checkpoint."
        )


async def _asked(
    wire: Wire, url: str, model: str, rendered: Rendered, tokenizer: FastTokenizer, wishes: Sequence[Abilities]
) -> tuple[Abilities, Answer]:
    """Asks for everything, and for ever less where that is refused. Raises the last refusal where nothing is taken."""
    refusal: ServerError | None = None
    found: tuple[Abilities, Answer] | None = None
    for wish in wishes:
        text = None if wish.ids_in else str(tokenizer.backend_tokenizer.decode(list(rendered.prompt)))
        wanted = _unlikely(rendered) if wish.named else rendered.choices or rendered.draft.ids[:1]
        question = Question(prompt=rendered.prompt, max_new=1, wanted=wanted, read=wish.prompt_logprobs)
        try:
            said = await _said(wire, f"{url}/completions", question.body(model, wish, text=text), refusal)
        except ServerError as error:
            if error.status not in (*REFUSED, FAILED):
                raise
            refusal = error
            continue
        found = _found(said, wish, question)
        # Where names are passed over in silence, it may still tell of the likeliest tokens: the next wish.
        if found[0].named or not wish.named:
            return found
    if found is not None:
        return found
    raise refusal or ServerError(f"{url} takes no completions.")


async def _said(wire: Wire, url: str, body: Json, refusal: ServerError | None) -> Any:
    """The answer; asked for once more where a server that has just failed cut the connection behind its error, as vLLM does."""
    try:
        return await wire.post(url, body)
    except ServerError as error:
        if error.status is not None or refusal is None or refusal.status != FAILED:
            raise
        return await wire.post(url, body)


def _wishes(*, read: bool) -> list[Abilities]:
    """From everything to the least; without `read` nothing of the prompt."""
    # What tells of any token by name is vLLM: beside a server that does not, it is asked for its likeliest ones as well.
    all_of_it = Abilities(ids_in=True, logprobs=MOST_LOGPROBS[0], named=True, prompt_logprobs=True, extras=True)
    unnamed = [replace(all_of_it, named=False, logprobs=most) for most in MOST_LOGPROBS]
    unread = [replace(one, prompt_logprobs=False) for one in (all_of_it, *unnamed)]
    plain = [Abilities(ids_in=ids, logprobs=most) for ids in (True, False) for most in (*MOST_LOGPROBS, 0)]
    return [*([all_of_it, *unnamed] if read else []), *unread, *plain]


def _unlikely(rendered: Rendered) -> tuple[int, ...]:
    """Tokens of which hardly all are the likeliest ones: only a server that is asked for them by name tells of all."""
    return tuple(dict.fromkeys((*rendered.choices, *rendered.prompt[:4], *rendered.draft.ids[:4])))


def _found(said: Any, wish: Abilities, question: Question) -> tuple[Abilities, Answer]:
    answer, written = Answer(), Answer()
    answer.add(said, "token_ids", question.prompt) if wish.extras else answer.add(said, "", question.prompt)
    ids_out: Any = "token_ids" if answer.ids else ""
    if not answer.ids and wish.extras and any(token.startswith("token_id:") for token in answer.first):
        written.add(said, "logprobs", question.prompt)
        answer, ids_out = written, "logprobs"
    found = replace(
        wish,
        ids_out=ids_out,
        named=wish.named and all(answer.logprob(token, None) is not None for token in question.wanted),
        logprobs=wish.logprobs if answer.first else 0,
        prompt_logprobs=answer.read is not None,
    )
    return found, answer


async def _streams(wire: Wire, url: str, model: str, can: Abilities, prompt: Sequence[int]) -> bool:
    """Whether it streams, with the ids of each event."""
    question, answer = Question(prompt=tuple(prompt), max_new=2, stream=True), Answer()
    try:
        async with wire.events(f"{url}/completions", question.body(model, can)) as events:
            async for said in events:
                answer.add(said, can.ids_out)
    except ServerError as error:
        if error.status is None or error.status in (429, 502, 503, 504):
            raise
        return False
    return bool(answer.ids)
