"""What `/v1/completions` is asked, and what its answers say. Nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aligner_chain.errors import ServerError

Json = dict[str, Any]

_ID = "token_id:"
"""How vLLM writes a token as its number, where tokens are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """What a server turned out to do when it was asked. An OpenAI-compatible one need not do any of it.

    `ids_in`: it takes prompts of token ids. `ids_out` is where it tells those of the output: in `token_ids`, written in
    `logprobs`, or nowhere (""). `logprobs` is the number of most likely tokens that it tells of at a place, `named` that
    it tells of those that are named instead (vLLM's `logprob_token_ids`). `extras`: it takes fields that are not OpenAI's.
    """

    ids_in: bool = False
    ids_out: Literal["token_ids", "logprobs", ""] = ""
    logprobs: int = 0
    named: bool = False
    prompt_logprobs: bool = False
    stream: bool = False
    extras: bool = False

    def shared(self, other: Abilities) -> Abilities:
        """What this server and another one both do."""
        return Abilities(
            ids_in=self.ids_in and other.ids_in,
            ids_out=self.ids_out if self.ids_out == other.ids_out else "",
            logprobs=min(self.logprobs, other.logprobs),
            named=self.named and other.named,
            prompt_logprobs=self.prompt_logprobs and other.prompt_logprobs,
            stream=self.stream and other.stream,
            extras=self.extras and other.extras,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One completion that is asked for.

    `wanted` are ids whose log-probabilities at the first position are to be told; `read` asks for those of the prompt's own
    tokens. `prediction` is text that the output is likely to repeat.
    """

    prompt: tuple[int, ...]
    max_new: int
    wanted: tuple[int, ...] = ()
    read: bool = False
    stop_ids: tuple[int, ...] = ()
    stream: bool = False
    prediction: str = ""

    def body(self, model: str, can: Abilities, done: Sequence[int] = (), text: str | None = None) -> Json:
        """The request, going on behind `done` of the output; `text` in place of the ids for a server that takes none."""
        said: Json = {
            "model": model,
            "prompt": text if text is not None else [*self.prompt, *done],
            "max_tokens": self.max_new - len(done),
            "temperature": 0,
        }
        if self.stream:
            said["stream"] = True
        if self.wanted and (can.named or can.logprobs):
            said["logprobs"] = 1 if can.named else can.logprobs
        elif can.ids_out == "logprobs":
            said["logprobs"] = 1
        return {**said, **self._extras(can)} if can.extras else said

    def _extras(self, can: Abilities) -> Json:
        # A server's own defaults (vLLM takes them from generation_config.json) must not change a greedy output.
        said: Json = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        said |= {"skip_special_tokens": False, "spaces_between_special_tokens": False, "add_special_tokens": False}
        said |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        said |= {"stop_token_ids": list(self.stop_ids)} if self.stop_ids else {}
        said |= {"logprob_token_ids": list(self.wanted)} if self.wanted and can.named else {}
        said |= {"prompt_logprobs": 0} if self.read else {}
        if self.prediction:
            said["prediction"] = {"type": "content", "content": self.prediction}
        return said


@dataclass(slots=True)
class Answer:
    """A completion as far as it has come, of one response or of the events of a stream.

    `first` are the log-probabilities told of at its first position, as the server writes their tokens; `read` are those of
    the prompt's own tokens.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    stop: object = None
    first: Mapping[str, float] = field(default_factory=dict)
    read: list[float] | None = None
    accepted: int = 0

    def add(self, said: Any, where: Literal["token_ids", "logprobs", ""], prompt: Sequence[int] = ()) -> list[int]:
        """Takes in a response or an event, and returns the ids that are new. Raises `ServerError` for what is neither."""
        try:
            if said.get("error"):
                raise _refused(said["error"])
            self.accepted += _accepted(said.get("usage"))
            # Servers in Go write null for a list without elements, as in the event that tells the usage.
            return [token for choice in (said["choices"] or ())[:1] for token in self._choice(choice, where, prompt)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise unreadable(said) from error

    def _choice(self, choice: Json, where: str, prompt: Sequence[int]) -> list[int]:
        told = choice.get("logprobs") or {}
        ids = [int(token) for token in (choice.get("token_ids") or ())] if where == "token_ids" else []
        if where == "logprobs":
            ids = [int(token.removeprefix(_ID)) for token in told.get("tokens") or ()]
        if not self.first and told.get("top_logprobs") and not self.ids:
            own = zip(told.get("tokens") or (), told.get("token_logprobs") or (), strict=False)
            both = {**dict(list(own)[:1]), **(told["top_logprobs"][0] or {})}
            self.first = {str(token): _number(value) for token, value in both.items()}
        if choice.get("prompt_logprobs"):
            self.read = _read(choice["prompt_logprobs"], prompt)
        self.ids += ids
        self.text += choice.get("text") or ""
        self.finish = choice.get("finish_reason") or self.finish
        self.stop = choice.get("stop_reason", choice.get("matched_stop", self.stop))
        return ids

    def logprob(self, token: int, spelled: str | None) -> float | None:
        """The log-probability of a token at the first position, None where the server did not tell."""
        return self.first.get(f"{_ID}{token}", self.first.get(spelled) if spelled is not None else None)


def unreadable(said: object) -> ServerError:
    """The error for an answer that is no completion."""
    return ServerError(
        f"The server gave an answer that is no completion: {str(said)[:200]!r}. Is the address that of an OpenAI-compatible "
        "server, ending in /v1?",
        status=200,
    )


def _refused(error: object) -> ServerError:
    told = error.get("message", error) if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    return ServerError(f"The server broke off: {str(told)[:300]}", status=code if isinstance(code, int) else 500)


def _read(told: Sequence[Mapping[str, Any] | None], prompt: Sequence[int]) -> list[float]:
    """The log-probability of each token of the prompt; the first one has none."""
    values = [math.nan]
    for token, place in zip(prompt[1:], told[1:], strict=True):
        one = (place or {})[str(token)]
        values.append(_number(one["logprob"] if isinstance(one, Mapping) else one))
    return values


def _number(value: float | None) -> float:
    return -math.inf if value is None else float(value)


def _accepted(usage: Any) -> int:
    return int(((usage or {}).get("completion_tokens_details") or {}).get("accepted_prediction_tokens") or 0)
