"""A request of the chat completions API: what was asked, and what kind of answer was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aligner_chain.exchange import Exchange, Turn
from aligner_chain.proxy.errors import Refused
from aligner_chain.proxy.headers import Headers, value_of

_ROLE_OF = {"developer": "system", "function": "tool"}
_CONSTRAINED = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"),  # vLLM
    *("grammar", "json_schema", "regex", "ebnf"),  # llama.cpp and SGLang
)
"""Fields by which servers other than OpenAI's prescribe the form of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request. `constrained` says that the answer's form was prescribed, so that no other text would do."""

    turns: tuple[Turn, ...] = ()
    constrained: bool = False
    subject: str | None = None
    tenant: str | None = None
    split_key: str | None = None
    in_header: bool = False
    """Whether the client wants what became of its answers in a header, and the body as OpenAI has it."""

    def exchange(self, answer: str, *, upstream: str | None, message_id: str | None) -> Exchange:
        """The exchange that an answer makes of it."""
        return Exchange(
            turns=self.turns,
            answer=answer,
            upstream=upstream,
            message_id=message_id,
            subject=self.subject,
            tenant=self.tenant,
            split_key=self.split_key,
        )


def read_request(body: bytes, headers: Headers) -> Asked:
    """The request in a body. What is odd in it is the upstream's to refuse, and reads as nothing here.

    Raises:
        Refused: It is no JSON object.
    """
    kind = (value_of(headers, b"content-type") or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", "The body of a chat completion must be application/json.")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"The body is not JSON that can be read ({type(error).__name__}).") from None
    if not isinstance(asked, dict):
        raise Refused(400, "invalid_json", "The body is JSON, but no object.")
    return Asked(
        turns=_turns(asked.get("messages")),
        constrained=_constrained(asked),
        subject=_told(headers, "subject"),
        tenant=_told(headers, "tenant"),
        split_key=_told(headers, "split-key"),
        in_header=_told(headers, "metadata") == "header",
    )


def text_of(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts; "" for everything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if is_text(part))


def is_text(part: Any) -> bool:
    """Whether a part of a content is text."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _turns(messages: Any) -> tuple[Turn, ...]:
    said = [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    turns = [Turn(role=_role(message), text=text_of(message.get("content"))) for message in said]
    return tuple(turn for turn in turns if turn.text.strip())


def _role(message: Mapping[str, Any]) -> str:
    role = str(message.get("role"))
    return _ROLE_OF.get(role, role)


def _constrained(asked: Mapping[str, Any]) -> bool:
    wanted = asked.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    return kind not in (None, "text") or any(asked.get(name) for name in _CONSTRAINED)


def _told(headers: Headers, name: str) -> str | None:
    return value_of(headers, b"x-aligner-" + name.encode()) or None
