"""Headers of HTTP: what travels from one end to the other, and what belongs to one hop (RFC 9110, 7.6.1).

Rule 1: `guard-*` is the guard's own, and is taken from neither end.
Rule 2: a header that `Connection` names ends here as well, unless it tells how the body is to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = tuple[tuple[str, str], ...]

OURS = "guard-"
ONE_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length", "http2-settings"),
    }
)
OF_THE_BODY = frozenset({"content-encoding", "content-type", "inference-header-content-length"})


def text_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers with names in lower case, as text; no byte is lost."""
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw)


def end_to_end(headers: Headers) -> Headers:
    """The headers for the two ends, and neither the connection nor us."""
    named = {token.strip().lower() for value in values(headers, "connection") for token in value.split(",")}
    left_out = (named - OF_THE_BODY) | ONE_HOP
    return tuple((name, value) for name, value in headers if name not in left_out and not name.startswith(OURS))


def values(headers: Headers, wanted: str) -> list[str]:
    """The values of a header, in their order."""
    return [value.strip() for name, value in headers if name == wanted]


def encoded(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
