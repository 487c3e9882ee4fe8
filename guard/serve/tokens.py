"""Bearer tokens and the names of those who bear them, from a file.

    # one token a line: the name, and the token or its SHA-256
    training-jobs   V2l0aCAzMiByYW5kb20gYnl0ZXM
    camera-7        sha256:0f4d4d…

Rule 1: no token is kept, shown or logged; a file may hold nothing but digests.
Rule 2: how long a comparison takes says nothing of a token: what is looked up is a keyed digest, whose key is made anew
        in each process.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from guard.errors import ConfigError

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
NAME = re.compile(r"[!-~]{1,128}")
TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # of RFC 6750
BEARER = re.compile(r"bearer +([^ ]+) *", re.IGNORECASE)
MIN_TOKEN_CHARACTERS = 16


class Tokens:
    """The tokens of a file, each with the name of its bearer."""

    def __init__(self, bearers: dict[str, str]) -> None:
        """Take the bearers' names by the SHA-256 (hex) of their tokens."""
        self.secret = secrets.token_bytes(32)
        self.bearers = {self.keyed(digest): name for digest, name in bearers.items()}

    def __len__(self) -> int:
        return len(self.bearers)

    def keyed(self, digest: str) -> bytes:
        return hmac.digest(self.secret, digest.encode(), "sha256")

    def bearer(self, token: str) -> str | None:
        """The name of a token's bearer; None where the token is not known."""
        return self.bearers.get(self.keyed(digest_of(token)))


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def tokens_of(content: bytes, *, named: str) -> Tokens:
    """Read the tokens of a file; `named` is the setting with its file, for errors.

    Raises:
        ConfigError: a line is none of a token, two bearers share one, or there is no token at all. The message names
            the line and shows nothing of it.
    """
    bearers: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        wanted = "wanted NAME TOKEN, or NAME sha256:DIGEST"
        if len(words) != 2 or not NAME.fullmatch(words[0]):
            raise ConfigError(f"{named}, line {number}: {len(words)} words; {wanted}")
        name, token = words
        if token.startswith("sha256:"):
            found = DIGEST.fullmatch(token)
            if found is None:
                raise ConfigError(f"{named}, line {number}: not 64 digits of 0-9a-f behind sha256:; {wanted}")
            digest = found.group(1)
        elif not TOKEN.fullmatch(token):
            raise ConfigError(f"{named}, line {number}: a character that no token may have; {wanted}")
        elif len(token) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(
                f"{named}, line {number}: a token of {len(token)} characters can be guessed; wanted "
                f"{MIN_TOKEN_CHARACTERS} or more, as openssl rand -hex 32 makes them"
            )
        else:
            digest = digest_of(token)
        if bearers.setdefault(digest, name) != name:
            raise ConfigError(f"{named}, line {number}: {name!r} has the same token as {bearers[digest]!r}")
    if not bearers:
        raise ConfigError(f"{named} holds no token; wanted a line NAME TOKEN for each")
    return Tokens(bearers)


def token_in(header: str) -> str | None:
    """The token of a header `authorization: Bearer TOKEN`; None where it is of another form."""
    found = BEARER.fullmatch(header)
    return found.group(1) if found is not None else None
