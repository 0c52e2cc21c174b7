"""Which headers go on: all but those that belong to one connection, or to the proxy."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

OWN = b"x-aligner-"
"""What the headers begin with that are meant for the proxy."""
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade".split()
)
_OF_A_REQUEST = frozenset((b"host", b"expect"))
_OF_A_SERVER = frozenset((b"date", b"server"))
_OF_THE_BODY = frozenset((b"content-length", b"content-encoding"))


def for_upstream(headers: Iterable[tuple[bytes, bytes]], *, length: bool) -> Headers:
    """The client's headers for the upstream; `length` where its body goes on as it comes."""
    kept = _end_to_end(headers, _OF_A_REQUEST)
    kept = [(name, value) for name, value in kept if not name.startswith(OWN)]
    if length:
        return kept
    # A stream must not wait for a compressor's block, and a body that is read anew need not be compressed.
    dropped = (b"content-length", b"accept-encoding")
    return [(name, value) for name, value in kept if name not in dropped] + [(b"accept-encoding", b"identity")]


def for_client(headers: Iterable[tuple[bytes, bytes]], *, raw: bool) -> Headers:
    """The upstream's headers for the client; `raw` where its body goes on byte by byte."""
    kept = _end_to_end(headers, _OF_A_SERVER)
    return kept if raw else [(name, value) for name, value in kept if name not in _OF_THE_BODY]


def value_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The first value under a name, in lower case as ASGI has it."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {one.strip().lower() for name, value in lowered if name == b"connection" for one in value.split(b",")}
    unwanted = _HOP_BY_HOP | dropped | named
    return [(name, value) for name, value in lowered if name not in unwanted]
