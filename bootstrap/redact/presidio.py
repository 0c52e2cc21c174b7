"""Names of people and places, found by a model: Microsoft Presidio as a detector."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from aligner_chain.errors import ConfigurationError, MissingExtraError
from bootstrap.redact.patterns import Span

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

_PIECE = 100_000  # characters; spaCy refuses texts of a million
_SURROGATES = re.compile("[\ud800-\udfff]")
_OURS = {
    "CREDIT_CARD": "CARD",
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "PHONE_NUMBER": "PHONE",
    "US_SSN": "SSN",
}


class PresidioDetector:
    """What an analyzer finds in a text; `presidio_detector` makes one. `name` is kept with every record."""

    def __init__(self, analyzer: AnalyzerEngine, language: str, entities: Sequence[str], threshold: float) -> None:
        from importlib.metadata import version

        self._analyzer, self._language = analyzer, language
        self._entities, self._threshold = list(entities), threshold
        self.name = f"presidio@{version('presidio-analyzer')}-{language}"

    def __call__(self, text: str) -> Iterable[Span]:
        readable = _SURROGATES.sub("\ufffd", text)  # half a character is no text for spaCy
        for start, piece in _pieces(readable):
            for result in self._analyzer.analyze(
                piece, language=self._language, entities=self._entities, score_threshold=self._threshold
            ):
                yield Span(_kind(result.entity_type), start + result.start, start + result.end)


def presidio_detector(
    analyzer: AnalyzerEngine | None = None,
    *,
    language: str = "en",
    entities: Sequence[str] = ("PERSON", "LOCATION"),
    threshold: float = 0.5,
) -> PresidioDetector:
    """A detector for `Redactor(detectors=[...])`. It takes milliseconds for each text.

    Args:
        analyzer: yours; without one, Presidio's own recognizers over the largest spaCy model of the language that is
            installed. Nothing is ever downloaded.
        language: what the texts are written in, as two letters.
        entities: what to look for, by Presidio's names. Presidio's recognizer of e-mail addresses fetches a list from
            the network when it is first used; the built-in patterns find these without.
        threshold: the least score, from 0 to 1, with which a result counts.

    Raises:
        MissingExtraError: Presidio is not installed.
        ConfigurationError: no spaCy model of the language is installed, or the analyzer does not know the language or
            one of the entities.
    """
    try:
        import presidio_analyzer  # noqa: F401  # asked for here, so that what is missing is said at the start
    except ModuleNotFoundError as error:
        raise MissingExtraError("presidio-analyzer", "presidio") from error
    analyzer = analyzer or _installed_analyzer(language)
    _check(analyzer, language, entities)
    return PresidioDetector(analyzer, language, entities, threshold)


def _installed_analyzer(language: str) -> AnalyzerEngine:
    import spacy.util
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    names = [f"{language}_core_{genre}_{size}" for size in ("lg", "md", "sm") for genre in ("web", "news")]
    model = next(filter(spacy.util.is_package, names), None)
    if model is None:
        usual = f"{language}_core_{'web' if language in ('en', 'zh') else 'news'}_lg"
        raise ConfigurationError(
            f"No spaCy model of the language {language!r} is installed, and none is downloaded unasked. Install one:\n"
            f"  python -m spacy download {usual}\n"
            "or give presidio_detector an AnalyzerEngine of yours."
        )
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model}])
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[language])


def _check(analyzer: AnalyzerEngine, language: str, entities: Sequence[str]) -> None:
    if language not in analyzer.supported_languages:
        raise ConfigurationError(
            f"The analyzer knows the languages {', '.join(analyzer.supported_languages)} and not {language!r}."
        )
    known = analyzer.get_supported_entities(language)
    if unknown := sorted(set(entities) - set(known)):
        raise ConfigurationError(f"The analyzer finds no {', '.join(unknown)}; it knows {', '.join(sorted(known))}.")


def _kind(entity: str) -> str:
    return _OURS.get(entity, re.sub(r"[^A-Z0-9_]", "_", entity.upper()))


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text in pieces that end at white space where there is any."""
    start = 0
    while len(text) - start > _PIECE:
        cut = max(text.rfind(space, start, start + _PIECE) for space in " \n") + 1
        end = cut if cut > start else start + _PIECE
        yield start, text[start:end]
        start = end
    yield start, text[start:]
