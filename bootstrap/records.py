"""What is kept of live traffic: a correction with what collecting it adds, and what people say about it later."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from json.encoder import encode_basestring_ascii
from math import isfinite
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal, get_args

from aligner_chain.exchange import Correction, Edit, Exchange, Finding, Turn, Usage, uuid7
from bootstrap.errors import RecordError

Split = Literal["train", "gate", "report"]
Kind = Literal["thumb", "score", "comment", "edit", "review"]

SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_SHARE = 0.2

# Identifiers are text, to be searched by. What a model or a user wrote is JSON: its escapes hold every Python string
# as it is, also the lone surrogates that a database's text refuses.
EXCHANGE_IDENTIFIERS = ("upstream", "message_id", "run_id", "subject", "tenant", "split_key")
DOCUMENTS = (
    "turns",
    "answer",
    "context",
    "text",
    "reason",
    "edits",
    "scores",
    "thresholds",
    "criteria",
    "findings",
    "usage",
)


def now_ms() -> int:
    """The time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What a person or a script said about one answer, any time after it was given. Nothing is ever overwritten.

    It is about the correction with `correction_id`, or the one whose exchange has this `message_id` or `run_id`; at least
    one of the three is needed, and the correction may be recorded later.

    kind and value:
        "thumb": True (up) or False (down), about the answer as it was served.
        "score": a finite number, about the answer as it was served; its scale is yours.
        "comment": a text.
        "edit": what the answer should have been, as a person wrote it; it outranks the Aligner's text.
        "review": True where a person accepts the correction, False where they reject it.
    """

    kind: Kind
    value: bool | float | str
    correction_id: str | None = None
    message_id: str | None = None
    run_id: str | None = None
    author: str | None = None
    at_ms: int = field(default_factory=now_ms)
    id: str = field(default_factory=lambda: str(uuid7()))

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise RecordError(f"Feedback is one of {', '.join(get_args(Kind))}, not {self.kind!r}.")
        if not _fits(self.kind, self.value):
            raise RecordError(f"The value of a {self.kind} is {_VALUES[self.kind]}, not {self.value!r:.60}.")
        if not (self.correction_id or self.message_id or self.run_id):
            raise RecordError("Feedback needs a correction_id, a message_id or a run_id: what is it about?")


_VALUES: Mapping[Kind, str] = MappingProxyType(
    {
        "thumb": "True (up) or False (down)",
        "review": "True (accept) or False (reject)",
        "score": "a finite number",
        "comment": "a text",
        "edit": "a text that is not empty",
    }
)


def _fits(kind: Kind, value: object) -> bool:
    if kind in ("thumb", "review"):
        return isinstance(value, bool)
    if kind == "score":
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return isinstance(value, str) and (kind == "comment" or bool(value.strip()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A correction as it is kept.

    `weight` is the inverse of the probability with which it was kept. `redactor` names what replaced personal data in it,
    "" where nothing did. `at_ms` is when it was collected. `feedback` holds, as far as the store was asked for it, all that
    was said about it, oldest first.
    """

    correction: Correction
    weight: float = 1.0
    redactor: str = ""
    at_ms: int = field(default_factory=now_ms)
    feedback: tuple[Feedback, ...] = ()

    @property
    def split(self) -> Split:
        """The split that it belongs to, for good."""
        return split_of(self.correction.exchange.turns, self.correction.exchange.split_key)

    @property
    def prompt(self) -> str:
        """The SHA-256 of the normalised prompt, in hex."""
        return hashlib.sha256(normalised_prompt(self.correction.exchange.turns).encode()).hexdigest()

    def latest(self, kind: Kind) -> Feedback | None:
        """The newest feedback of a kind, None where there is none."""
        return next((one for one in reversed(self.feedback) if one.kind == kind), None)

    @property
    def decision(self) -> Feedback | None:
        """What a person decided last, the newest edit or review: it takes the place of those before. None without one."""
        return next((one for one in reversed(self.feedback) if one.kind in ("edit", "review")), None)


def split_of(turns: Sequence[Turn], split_key: str | None = None) -> Split:
    """The split that a prompt belongs to, the same on every machine and at every time.

    A fifth is held out: by the hash of `split_key`, which keeps what belongs together on one side, or of the normalised
    prompt where there is none. A held-out prompt goes half and half to the gate set and the report set, always by its
    normalised prompt, so that no prompt is in both.
    """
    return _split(normalised_prompt(turns), split_key)


def _split(prompt: str, split_key: str | None) -> Split:
    if _fraction("held out", split_key or prompt) >= HELD_OUT_SHARE:
        return "train"
    return "gate" if _fraction("half", prompt) < 0.5 else "report"


def normalised_prompt(turns: Sequence[Turn]) -> str:
    """All turns as one text in which neither case nor the kind and amount of white space makes a difference."""
    return _list([f"[{_text(turn.role)}, {_text(' '.join(turn.text.casefold().split()))}]" for turn in turns])


def is_unicode(text: str) -> bool:
    """Whether a text holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fraction(salt: str, text: str) -> float:
    """A number from 0 to below 1 that looks random and depends on both texts only."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


# --- as JSON ----------------------------------------------------------------------------------------------------


def fields_of(record: Record) -> dict[str, Any]:
    """A record as an object of JSON, flat, checked: whatever is wrong with it is found before a disk is asked.

    Feedback is left out; it is kept by itself.

    Raises:
        RecordError: it cannot be written as it is; the message names the correction.
    """
    fields = encoded(record)
    return fields | {name: json.loads(fields[name]) for name in DOCUMENTS}


def json_of(record: Record) -> str:
    """The text of `fields_of` as JSON, in ASCII, on one line.

    Raises:
        RecordError: it cannot be written as it is.
    """
    # What is in the documents is not looked at a second time: most of a record is in them.
    fields = encoded(record)
    documents = ", ".join([f'"{name}": {fields.pop(name)}' for name in DOCUMENTS])
    return f"{_ENCODER.encode(fields)[:-1]}, {documents}}}"


def encoded(record: Record) -> dict[str, Any]:
    """As `fields_of`, but each of the `DOCUMENTS` is the text of its JSON, as a database keeps it."""
    try:
        fields = _identifiers(record)
        _check_identifiers(fields)
        _add_documents(fields, record.correction)
        fields["weight"] = _finite(float(record.weight))
        fields["at_ms"] = int(record.at_ms)
    except _UNWRITABLE as error:
        raise _refused(record, error) from error
    return fields


def feedback_fields(feedback: Feedback) -> dict[str, Any]:
    """Feedback as a database keeps it, flat; `value` is the text of its JSON.

    Raises:
        RecordError: it cannot be written as it is; the message names it.
    """
    fields = {name: getattr(feedback, name) for name in _FEEDBACK_IDENTIFIERS}
    try:
        _check_identifiers(fields)
        return fields | {"value": _ENCODER.encode(feedback.value), "at_ms": int(feedback.at_ms)}
    except (TypeError, ValueError) as error:
        raise RecordError(f"The feedback {feedback.id!r} cannot be stored: {error}.") from error


def check_identifier(name: str, value: str) -> str:
    """The identifier, where a database's text can hold it.

    Raises:
        RecordError: it holds half a character, or a NUL (which PostgreSQL refuses).
    """
    try:
        _check_identifiers({name: value})
    except (TypeError, ValueError) as error:
        raise RecordError(f"No record can have this {name}: {error}.") from error
    return value


def placed(record: Record) -> tuple[str, Split]:
    """A record's `prompt` and `split`, both at once."""
    exchange = record.correction.exchange
    try:
        prompt = normalised_prompt(exchange.turns)
    except _UNWRITABLE as error:
        raise _refused(record, error) from error
    return hashlib.sha256(prompt.encode()).hexdigest(), _split(prompt, exchange.split_key)


def _refused(record: Record, error: Exception) -> RecordError:
    which: object = getattr(record.correction, "id", record.correction)
    return RecordError(f"The correction {which!r} cannot be stored: {error}. Mend it and append it again.")


def _identifiers(record: Record) -> dict[str, Any]:
    correction = record.correction
    exchange = correction.exchange
    return {
        "id": correction.id,
        "outcome": correction.outcome,
        "aligner": correction.aligner,
        "template": correction.template,
        "redactor": record.redactor,
        "upstream": exchange.upstream,
        "message_id": exchange.message_id,
        "run_id": exchange.run_id,
        "subject": exchange.subject,
        "tenant": exchange.tenant,
        "split_key": exchange.split_key,
    }


def _add_documents(fields: dict[str, Any], correction: Correction) -> None:
    """Adds the `DOCUMENTS`, each as `json.dumps` would write it.

    Written out by hand, since every correction of live traffic passes here: an encoder that has to look at what it is
    given takes five times as long, and one with an output of its own (orjson) would change what is stored.
    """
    exchange = correction.exchange
    fields["turns"] = _list([f"[{_text(turn.role)}, {_text(turn.text)}]" for turn in exchange.turns])
    fields["answer"] = _text(exchange.answer)
    fields["context"] = _list(map(_text, exchange.context))
    fields["text"] = _text(correction.text)
    fields["reason"] = _text(correction.reason)
    fields["edits"] = _list(
        [f"[{_number(e.start)}, {_number(e.end)}, {_text(e.before)}, {_text(e.after)}]" for e in correction.edits]
    )
    fields["scores"] = _numbers(correction.scores)
    fields["thresholds"] = _numbers(correction.thresholds)
    fields["criteria"] = _list(map(_text, correction.criteria))
    fields["findings"] = _ENCODER.encode([asdict(one) for one in correction.findings]) if correction.findings else "[]"
    fields["usage"] = _USAGE_FORM.format(*map(_number, _usage_of(correction.usage)))


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def _numbers(values: Mapping[str, float]) -> str:
    return f"{{{', '.join([f'{_text(name)}: {_number(float(value))}' for name, value in values.items()])}}}"


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"{value} is no number that JSON has a word for")
    return value


def _number(value: float) -> str:
    """A number as JSON; what is none, or one that JSON has no word for, raises."""
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return _ENCODER.encode(value)


def record_of(fields: Mapping[str, Any]) -> Record:
    """The record that `fields_of` made an object of. `error` and `tokens` are not kept; all else comes back equal."""
    return Record(
        correction=Correction(
            id=fields["id"],
            exchange=Exchange(
                turns=tuple(Turn(role=role, text=text) for role, text in fields["turns"]),
                answer=fields["answer"],
                context=tuple(fields["context"]),
                **{name: fields[name] for name in EXCHANGE_IDENTIFIERS},
            ),
            outcome=fields["outcome"],
            aligner=fields["aligner"],
            template=fields["template"],
            text=fields["text"],
            reason=fields["reason"],
            edits=tuple(Edit(start=i, end=k, before=before, after=after) for i, k, before, after in fields["edits"]),
            scores=MappingProxyType(fields["scores"]),
            thresholds=MappingProxyType(fields["thresholds"]),
            criteria=tuple(fields["criteria"]),
            findings=tuple(Finding(**finding) for finding in fields["findings"]),
            usage=Usage(**fields["usage"]),
        ),
        weight=fields["weight"],
        redactor=fields["redactor"],
        at_ms=fields["at_ms"],
    )


def _check_identifiers(identifiers: Mapping[str, str | None]) -> None:
    """Raises ValueError where a database's text cannot hold one: half a character, or a NUL (PostgreSQL)."""
    together = "".join([value for value in identifiers.values() if value is not None])
    if together.isascii() and "\0" not in together:  # almost always, and one look is quicker than eleven
        return
    for name, value in identifiers.items():
        if value is not None and "\0" in value:
            raise ValueError(f"{name} holds a NUL character")
        if value is not None:
            value.encode()


_text = encode_basestring_ascii  # of JSON; what is no text raises
_ENCODER = json.JSONEncoder(allow_nan=False, check_circular=False)
_USAGE = tuple(one.name for one in fields(Usage))
_usage_of = attrgetter(*_USAGE)
_USAGE_FORM = f"{{{{{', '.join(f'{_text(name)}: {{}}' for name in _USAGE)}}}}}"
_FEEDBACK_IDENTIFIERS = ("id", "kind", "correction_id", "message_id", "run_id", "author")
_UNWRITABLE = (AttributeError, TypeError, ValueError, OverflowError, RecursionError)
