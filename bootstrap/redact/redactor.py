"""The redactor: a correction in, the same correction without personal data out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction, Edit, Finding, edits_between
from bootstrap.records import Feedback
from bootstrap.redact.builtin import BUILT_IN, VERSION
from bootstrap.redact.patterns import Pattern, Span, plain
from bootstrap.redact.placeholders import Forms, Names, Replacement, apart, form_of, moved, replaced

Detector = Callable[[str], Iterable[Span]]


class Redactor:
    """Replaces personal data in corrections by placeholders such as `<EMAIL_1>`.

        redact = Redactor(extra=[("ORDER", re.compile(r"A-[0-9]{6}"))], keep=["help@shop.example"])
        clean = redact(correction)

    A value has the same placeholder in turns, passages, answer, corrected text and reason, however it is written, and
    is replaced wherever it stands as a whole word, also where a rule alone would not have found it. So redaction never
    looks like an edit: texts that were equal stay equal. Redacting again changes nothing. Identifiers (`subject`,
    `tenant`, `message_id`, `run_id`, `split_key`) stay, since deletion and feedback need them.

    It keeps nothing between corrections; threads may share it.

    Args:
        patterns: the rules, the built-in ones unless given.
        extra: further rules, each a kind in capitals and a regular expression; of a group named `value` this alone is
            replaced.
        detectors: functions that take a text and return the `Span`s of it that hold personal data.
        keep: values that are never replaced, such as your own support address; neither case nor punctuation counts.

    Raises:
        ConfigurationError: a kind is no name, or (when called) a detector returned a span outside its text. Whatever a
            detector raises is raised; what could not be redacted must not be stored.
    """

    def __init__(
        self,
        patterns: Sequence[Pattern] = BUILT_IN,
        *,
        extra: Iterable[tuple[str, re.Pattern[str]]] = (),
        detectors: Iterable[Detector] = (),
        keep: Iterable[str] = (),
    ) -> None:
        extra = tuple(extra)
        self._detectors = tuple(detectors)
        self._patterns = (*patterns, *(_pattern(kind, regex) for kind, regex in extra))
        self._normal = {pattern.kind: pattern.normal for pattern in reversed(self._patterns)}
        self._keep = frozenset(map(_bare, keep))
        self.name = _name(patterns, self._patterns[len(patterns) :], self._detectors, self._keep)

    def __call__(self, correction: Correction) -> Correction:
        """The correction without personal data. `error` and `tokens`, which are never stored, are dropped."""
        exchange = correction.exchange
        clean, steps = self._rewritten(_texts(correction))
        if not steps:
            return _without_traces(correction)
        *others, answer, text, reason = clean
        asked = len(exchange.turns)
        turns = tuple(replace(turn, text=new) for turn, new in zip(exchange.turns, others[:asked], strict=True))
        changed = (answer, text) != (exchange.answer, correction.text)
        return replace(
            _without_traces(correction),
            exchange=replace(exchange, turns=turns, answer=answer, context=tuple(others[asked:])),
            text=text,
            reason=reason,
            edits=_edits(answer, text) if changed else correction.edits,
            findings=tuple(_moved(finding, [step[-3] for step in steps]) for finding in correction.findings),
        )

    def feedback(self, feedback: Feedback, about: Correction | None = None) -> Feedback:
        """A comment or an edit without personal data; every other feedback as it is.

        Placeholders in it stay. `about` is the redacted correction, if known: what is new in the feedback gets no
        placeholder that stands for something else there.
        """
        if not isinstance(feedback.value, str):
            return feedback
        known = _texts(about) if about else ()
        [value], _ = self._rewritten([feedback.value], known)
        return replace(feedback, value=value)

    def find(self, text: str) -> list[Span]:
        """What would be replaced in a text by itself, in order; of what overlaps the longest."""
        spans = {form_of(text, span): span.kind for span in reversed(self._found(text))}
        return [Span(spans[place], *place) for place in apart(text, spans)]

    def _rewritten(
        self, texts: list[str], known: Iterable[str] = ()
    ) -> tuple[list[str], list[list[tuple[Replacement, ...]]]]:
        """The texts without personal data, and in each step what was replaced in each text.

        What a replaced value stood beside may come to light only then, so it is looked again until nothing is found.
        """
        found = {text: self._found(text) for text in dict.fromkeys(texts)}
        steps: list[list[tuple[Replacement, ...]]] = []
        if not any(found.values()):
            return texts, steps
        forms, names = Forms(), Names([*texts, *known])
        while True:
            found = {text: found[text] if text in found else self._found(text) for text in dict.fromkeys(texts)}
            for text, spans in found.items():
                for span in spans:
                    form = slice(*form_of(text, span))
                    forms.add(text[form], (span.kind, self._normal.get(span.kind, plain)(text[form])))
            places = {text: apart(text, self._places(text, spans, forms)) for text, spans in found.items()}
            if not any(places.values()):
                return texts, steps
            step = [replaced(text, places[text], forms, names) for text in texts]
            texts = [text for text, _ in step]
            steps.append([replacements for _, replacements in step])

    def _places(self, text: str, spans: Sequence[Span], forms: Forms) -> list[tuple[int, int]]:
        return [*(form_of(text, span) for span in spans), *forms.places(text)]

    def _found(self, text: str) -> list[Span]:
        """All that a rule or a detector finds in a text, with overlaps."""
        lowered, digits = text.lower(), sum(map(text.count, "0123456789"))
        spans = [one for rule in self._patterns if rule.may_find(lowered, digits) for one in rule.find(text)]
        for detector in self._detectors:
            spans += _checked(detector, text)
        return [span for span in spans if self._counts(text[span.start : span.end])]

    def _counts(self, form: str) -> bool:
        return bool(form.strip()) and not (self._keep and _bare(form) in self._keep)


def _texts(correction: Correction) -> list[str]:
    exchange = correction.exchange
    return [
        *(turn.text for turn in exchange.turns),
        *exchange.context,
        exchange.answer,
        correction.text,
        correction.reason,
    ]


def _edits(answer: str, text: str) -> tuple[Edit, ...]:
    return () if answer == text else edits_between(answer, text)  # to compare equal texts takes just as long


def _without_traces(correction: Correction) -> Correction:
    """Without the error, whose message may quote a text, and the tokens, whose places a replacement would shift."""
    if correction.error is None and not correction.tokens:
        return correction
    return replace(correction, error=None, tokens=())


def _moved(finding: Finding, steps: Iterable[Sequence[Replacement]]) -> Finding:
    start, end = finding.start, finding.end
    for replacements in steps:
        start = None if start is None else moved(start, replacements, to_end=False)
        end = None if end is None else moved(end, replacements, to_end=True)
    return replace(finding, start=start, end=end)


def _checked(detector: Detector, text: str) -> Iterable[Span]:
    for span in detector(text):
        if not 0 <= span.start <= span.end <= len(text):
            raise ConfigurationError(
                f"The detector {_label(detector)} returned characters {span.start} to {span.end} of a text of {len(text)}. "
                "A Span counts characters from 0, its end excluded."
            )
        yield span


def _bare(value: str) -> str:
    """Letters and digits alone, in small letters."""
    return re.sub(r"[\W_]", "", value).casefold()


def _pattern(kind: str, regex: re.Pattern[str]) -> Pattern:
    Span(kind, 0, 0)  # refuses what names no kind before the first text does
    return Pattern(kind=kind, regex=regex)


def _name(
    patterns: Sequence[Pattern], extra: Sequence[Pattern], detectors: Sequence[Detector], keep: Collection[str]
) -> str:
    """The rules in short, each that is not built in with a hash of what it says."""
    base = f"builtin@{VERSION}" if tuple(patterns) == BUILT_IN else ""
    own = [f"{one.kind}@{_hash(one.regex.pattern)}" for one in ((*patterns, *extra) if not base else extra)]
    kept = [f"keep@{_hash(*sorted(keep))}"] if keep else []
    return "+".join(filter(None, [base, *own, *map(_label, detectors), *kept])) or "none"


def _label(detector: Detector) -> str:
    return str(getattr(detector, "name", None) or getattr(detector, "__name__", type(detector).__name__))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:6]
