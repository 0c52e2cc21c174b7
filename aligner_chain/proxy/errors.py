"""What a client is told of an error, in OpenAI's words, and never with a text of the answer in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aligner_chain.errors import AlignerError, CorrectionError, OverloadedError, PromptNotFoundError
from aligner_chain.exchange import Correction

RETRY_AFTER_S = 1
_NO_RETRY = {"x-should-retry": "false"}  # what OpenAI's clients look at before they ask, and pay for, the same again
_KINDS = {429: "rate_limit_error", 502: "upstream_error", 503: "aligner_error", 504: "timeout_error"}
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Refused(Exception):  # noqa: N818  (what becomes of a request, and only within this room)
    """A request that ends with an error of the proxy's own."""

    def __init__(
        self, status: int, code: str, message: str, *, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}
        self.kind = kind or _KINDS.get(status, "invalid_request_error")

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes an error."""
        return {"error": {"message": str(self), "type": self.kind, "param": None, "code": self.code}}

    @property
    def text(self) -> str:
        """The body as JSON."""
        return json.dumps(self.body)


def not_corrected(correction: Correction, error: Exception) -> Refused:
    """For an answer whose correction failed. The error's own words stay here, since they can quote the answer."""
    told = f"The answer could not be corrected ({type(error).__name__}, correction {correction.id})."
    if isinstance(error, PromptNotFoundError):
        told += " The question holds no words, and an Aligner reads nothing else."
        return Refused(422, _code(error), told, headers=_NO_RETRY)
    if isinstance(error, OverloadedError):
        return Refused(503, _code(error), told, headers={"retry-after": str(RETRY_AFTER_S)})
    return Refused(502, _code(error), told, kind="aligner_error", headers=_NO_RETRY)


def no_aligner(error: AlignerError) -> Refused:
    """For an Aligner that is not there, which `on_error` says nothing about."""
    told = f"There is no Aligner to correct the answer with ({type(error).__name__})."
    return Refused(503, _code(error), told, headers=_NO_RETRY)


def cut(reason: str) -> Refused:
    """For an upstream whose answer broke off or cannot be read."""
    return Refused(502, "upstream_cut", f"The upstream's answer {reason}.")


def out_of_time(seconds: float) -> Refused:
    """For a request that took longer than any may."""
    return Refused(504, "request_timeout", f"The request took longer than {seconds:g} s.")


def of(error: Exception) -> Refused:
    """Whatever went wrong while an answer was corrected, as what the client is told."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, AlignerError) and not isinstance(error, CorrectionError):
        return no_aligner(error)
    return Refused(500, "internal_error", f"The proxy failed ({type(error).__name__}).", kind="server_error")


def _code(error: Exception) -> str:
    return _HUMPS.sub("_", type(error).__name__.removesuffix("Error")).lower()
