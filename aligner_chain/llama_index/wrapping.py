"""What all that goes around a part of LlamaIndex has in common."""

from __future__ import annotations

from pathlib import Path

from aligner_chain.aligner import Aligner
from aligner_chain.errors import ConfigurationError
from aligner_chain.llama_index.postprocessor import AlignerResponsePostprocessor


def require_kind(part: object, kind: type, wrapper: str, around: str) -> None:
    """Raises `ConfigurationError` where what is to be wrapped is something else."""
    if not isinstance(part, kind):
        raise ConfigurationError(
            f"{wrapper} goes around a {kind.__name__}, and this is a {type(part).__name__}: {wrapper}({around}, postprocessor)."
        )


def fitted(
    given: AlignerResponsePostprocessor | Aligner | str | Path | None, part: object
) -> AlignerResponsePostprocessor:
    """A postprocessor for a part of LlamaIndex, that also knows the part's word for no answer and the name of its model.

    `given` is one, or stands for one with its defaults.
    """
    postprocessor = given if isinstance(given, AlignerResponsePostprocessor) else AlignerResponsePostprocessor(given)
    empty = getattr(part, "_empty_response", None)
    llm = getattr(part, "_llm", None) or getattr(part, "llm", None)
    model = getattr(getattr(llm, "metadata", None), "model_name", None)
    known = {
        "skip_texts": (*postprocessor.skip_texts, *([empty] if empty else [])),
        "upstream": postprocessor.upstream or (model if model != "unknown" else None),
    }
    return postprocessor.model_copy(update=known)
