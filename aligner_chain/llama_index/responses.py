"""LlamaIndex's responses as answers, and a correction as a response again.

A response sits in the events of a trace as well, so it is never changed: what comes out is another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llama_index.core.base.response.schema import PydanticResponse, Response
from pydantic import BaseModel, ValidationError

from aligner_chain.errors import ConfigurationError
from aligner_chain.exchange import Correction
from aligner_chain.structured import same_shape

METADATA_KEY = "aligner"
"""Where `response.metadata` tells what became of the answer, beside LlamaIndex's own keys, which are node ids."""

_CITATION = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
_PART = re.compile(r"^Response \d+:", re.MULTILINE)


@dataclass
class CorrectedResponse(Response):
    """An answer that an Aligner has been at, which is told by this type: anybody may write metadata."""


@dataclass
class CorrectedPydanticResponse(PydanticResponse):
    """The same for structured output."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer in a response that is whole. `skip` says why it is not for the Aligner, or "" where it is.

    `field` names the field that holds it, where the response is a Pydantic model.
    """

    response: Response | PydanticResponse
    text: str
    skip: str = ""
    field: str = ""

    def misfit(self, correction: Correction) -> str:
        """What keeps a correction from standing in the answer's place, or ""."""
        try:
            self._model(correction.text)
        except ValidationError as error:
            return f"the correction is no valid {self.field}: {error.errors()[0]['msg']}"
        except Exception as error:  # noqa: BLE001  A validator of the user's own raises anything.
            return f"the correction is no valid {self.field}: {type(error).__name__}"
        return ""

    def deliver(self, correction: Correction, *, keep_original: bool) -> CorrectedResponse | CorrectedPydanticResponse:
        """The response with the text that is to be served, and in its metadata what became of the answer."""
        given, summary = self.response, correction.summary(keep_original=keep_original)
        metadata = {**(given.metadata or {}), METADATA_KEY: summary}
        if isinstance(given, Response):
            text = correction.text if correction.changed else given.response
            return CorrectedResponse(text, given.source_nodes, metadata)
        model = self._model(correction.text) if correction.changed else given.response
        return CorrectedPydanticResponse(model, given.source_nodes, metadata)

    def _model(self, text: str) -> BaseModel | None:
        """The model with its field changed. To validate the other fields again could change them."""
        model = self.response.response
        if not self.field or not isinstance(model, BaseModel):
            return None
        changed = model.model_copy()
        try:
            model.__pydantic_validator__.validate_assignment(changed, self.field, text)
        except ValidationError as error:
            if not error.errors()[0]["type"].startswith("frozen"):
                raise
            return model.model_copy(update={self.field: text})
        return changed


def read(response: Response | PydanticResponse, pydantic_field: str | None) -> Answer:
    """The answer in a response.

    Raises:
        ConfigurationError: a Pydantic response without the field that was named, or with something else than text in it.
    """
    # By type and not by attribute: a PydanticResponse has every attribute that one asks for.
    if isinstance(response, Response):
        return Answer(response, response.response or "")
    model = response.response
    if pydantic_field is None or model is None:
        reason = "the answer is structured output; pydantic_field= names the field of it to correct"
        return Answer(response, str(response) if model else "", skip=reason)
    held = dict(model)
    text = held.get(pydantic_field)
    if text is None and pydantic_field in held:
        return Answer(response, "", field=pydantic_field)
    if not isinstance(text, str):
        texts = [name for name, value in held.items() if isinstance(value, str)]
        raise ConfigurationError(
            f"{type(model).__name__} has no text in a field {pydantic_field!r}. Its fields that hold text: "
            f"{', '.join(texts) or 'none'}. Name one with AlignerResponsePostprocessor(pydantic_field=...)."
        )
    return Answer(response, text, field=pydantic_field)


def other_shape(correction: Correction) -> str:
    """Whether a correction of JSON is JSON that can be read as the answer can, and if not, that."""
    fits = same_shape(correction.exchange.answer, correction.text)
    return "" if fits else "the correction is not JSON of the same shape"


def other_marks(correction: Correction, sources: int) -> str:
    """What a correction did to the marks that others read in an answer, or "".

    Marks are citations such as [1] of one of `sources` nodes, and what parts the answers of accumulating synthesizers.
    """
    before, after = _marks(correction.exchange.answer, sources), _marks(correction.text, sources)
    lost, added = sorted(before - after), sorted(after - before)
    if lost:
        return f"the correction lost {', '.join(lost)}"
    return f"the correction added {', '.join(added)}" if added else ""


def _marks(text: str, sources: int) -> set[str]:
    numbers = {int(number) for mark in _CITATION.finditer(text) for number in mark[1].split(",")}
    citations = {f"[{number}]" for number in numbers if 1 <= number <= sources}
    return citations | (set(_PART.findall(text)) if sources else set())
