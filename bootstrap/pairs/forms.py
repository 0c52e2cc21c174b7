"""The forms of exported rows: what trainers and providers call their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from aligner_chain.exchange import Turn
from bootstrap.pairs.building import Kept, PairMaker
from bootstrap.pairs.filters import Filters
from bootstrap.pairs.reading import triple_fields
from bootstrap.pairs.triples import VouchedTriples

if TYPE_CHECKING:
    import pyarrow as pa

Name = Literal["preference", "prompt-completion", "triples", "openai-preference"]
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form of rows.

    `maker` makes what `fields` turns into an object of JSON. `schema` gives the columns of a table, None where the form
    is for JSON lines only.
    """

    maker: Callable[[Filters], Any]
    fields: Callable[[Kept[Any]], dict[str, Any]]
    schema: Callable[[], pa.Schema] | None


def preference(kept: Kept[Any]) -> dict[str, Any]:
    """TRL's conversational preference: messages under `prompt`, `chosen` and `rejected`."""
    pair = kept.row
    return {"prompt": _messages(pair.turns), "chosen": _reply(pair.chosen), "rejected": _reply(pair.rejected)}


def prompt_completion(kept: Kept[Any]) -> dict[str, Any]:
    """TRL's conversational prompt-completion. `weight` says how many answers of the traffic the row stands for."""
    return {"prompt": _messages(kept.row.turns), "completion": _reply(kept.row.chosen), "weight": kept.weight}


def triple(kept: Kept[Any]) -> dict[str, Any]:
    """A question, an answer and its correction, as `read_triples` reads them."""
    return {**triple_fields(kept.row), "weight": kept.weight}


def openai_preference(kept: Kept[Any]) -> dict[str, Any]:
    """The format of hosted preference fine-tuning at OpenAI, Azure and Fireworks."""
    pair = kept.row
    return {
        "input": {"messages": _messages(pair.turns), "tools": [], "parallel_tool_calls": True},
        "preferred_output": _reply(pair.chosen),
        "non_preferred_output": _reply(pair.rejected),
    }


def _messages(turns: Sequence[Turn]) -> list[Message]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _reply(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _preference_schema() -> pa.Schema:
    return _schema(prompt="messages", chosen="messages", rejected="messages")


def _completion_schema() -> pa.Schema:
    return _schema(prompt="messages", completion="messages", weight="number")


def _triple_schema() -> pa.Schema:
    texts = dict.fromkeys(("context", "criteria", "asked"), "texts")
    return _schema(turns="turns", answer="text", correction="text", **texts, source="text", weight="number")


def _schema(**columns: str) -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    types = {
        "messages": pa.list_(pa.struct({"role": text, "content": text})),
        "turns": pa.list_(pa.struct({"role": text, "text": text})),
        "texts": pa.list_(text),
        "text": text,
        "number": pa.float64(),
    }
    return pa.schema({name: types[kind] for name, kind in columns.items()})


def _with_identities(filters: Filters) -> PairMaker:
    return PairMaker(filters, identities=True)


def _vouched(filters: Filters) -> VouchedTriples:
    return VouchedTriples()


FORMS: Mapping[Name, Form] = MappingProxyType(
    {
        "preference": Form(maker=PairMaker, fields=preference, schema=_preference_schema),
        "prompt-completion": Form(maker=_with_identities, fields=prompt_completion, schema=_completion_schema),
        "triples": Form(maker=_vouched, fields=triple, schema=_triple_schema),
        "openai-preference": Form(maker=PairMaker, fields=openai_preference, schema=None),
    }
)
