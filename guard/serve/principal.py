"""The principal of a call: who calls, by a certificate, a token, or the word of a hop that is trusted.

How it works. Every door hands over what it knows of a call: its headers, its peer's address and the names in its
peer's certificate. One of the three tells who calls, as `principal_from` says. `x-forwarded-client-cert` is what a
proxy that ends TLS writes of its client's certificate. A client can write it as well, so it counts only where it comes
from a hop that `trusted_hops` names, and of several elements the last: that one the hop has written itself.

Rule 1: with a source, a call that it does not name is refused; there is no nameless principal.
Rule 2: a token does not go on to the model server unless told to, and the word of a hop that is not trusted never does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guard.config import PrincipalFrom, ServeConfig
from guard.errors import ConfigError, Unauthenticated
from guard.serve.rotation import Rotated
from guard.serve.tokens import Tokens, token_in

AUTHORIZATION = "authorization"
FORWARDED_CERTIFICATE = "x-forwarded-client-cert"
XFCC_PART = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^,;"]*)([;,]|$)')
MAX_XFCC_CHARACTERS = 16 * 1024
NAMES = ("URI", "DNS", "Subject")  # of an element, the first that is there
UNIX = "unix"

Headers = Iterable[tuple[str, str | bytes]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Peer:
    """The other end of a connection."""

    address: str  # an IP address, or `UNIX`
    names: tuple[str, ...] = ()  # in its verified certificate: the first is the one that it goes by


@dataclass(frozen=True)
class Identified:
    """The name of a caller, and the headers that do not go on to the model server."""

    principal: str
    withheld: frozenset[str]


ANONYMOUS = Identified("", frozenset({FORWARDED_CERTIFICATE}))


@dataclass(frozen=True)
class Hops:
    """The hops whose word on a client's certificate is believed."""

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()
    unix: bool = False

    @staticmethod
    def of(texts: Sequence[str]) -> Hops:
        """Read networks, `unix` and names in certificates."""
        networks: list[Network] = []
        names = set()
        for text in texts:
            try:
                networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                names.add(text)
        return Hops(tuple(networks), frozenset(names - {UNIX}), UNIX in names)

    def has(self, peer: Peer) -> bool:
        """Whether the peer is one of these hops."""
        if self.names.intersection(peer.names):
            return True
        if peer.address == UNIX:
            return self.unix
        try:
            address = ipaddress.ip_address(peer.address)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


@dataclass(frozen=True)
class Principals:
    """The source that tells who calls; see `identify`."""

    source: PrincipalFrom = "none"
    tokens: Rotated[Tokens] | None = None
    hops: Hops = Hops()
    forward_token: bool = False

    @staticmethod
    def of(config: ServeConfig, tokens: Rotated[Tokens] | None) -> Principals:
        """Check that the settings fit together. Raises ConfigError."""
        source, hops = config.principal_from, Hops.of(config.trusted_hops)
        if source == "tls" and config.tls_client_ca is None:
            raise ConfigError(
                'principal_from = "tls" needs tls_client_ca: the certificates that clients\' must lead to'
            )
        if source == "bearer" and tokens is None:
            raise ConfigError('principal_from = "bearer" needs client_tokens: a file with a line NAME TOKEN for each')
        if source == "xfcc" and not config.trusted_hops:
            raise ConfigError(
                'principal_from = "xfcc" needs trusted_hops: networks, or names in certificates, of proxies'
            )
        if hops.names and config.tls_client_ca is None:
            raise ConfigError(
                f"trusted_hops names {sorted(hops.names)[0]!r}, which is no network, and without tls_client_ca nobody "
                "shows a certificate; wanted a network such as 10.0.0.0/8, or tls_client_ca"
            )
        for name, wanted in (("client_tokens", "bearer"), ("trusted_hops", "xfcc")):
            if getattr(config, name) and source != wanted:
                raise ConfigError(f'{name} is set, and principal_from = "{source}"; set principal_from = "{wanted}"')
        return Principals(source, tokens, hops, config.forward_token)

    def identify(self, headers: Headers, peer: Peer) -> Identified:
        """Tell who calls. Raises Unauthenticated."""
        match self.source:
            case "tls":
                if not peer.names:
                    raise Unauthenticated("your certificate names nobody; wanted one with a URI, DNS or common name")
                return Identified(peer.names[0], ANONYMOUS.withheld)
            case "bearer":
                kept = () if self.forward_token else (AUTHORIZATION,)
                return Identified(bearer(headers, self.tokens), ANONYMOUS.withheld.union(kept))
            case "xfcc":
                if not self.hops.has(peer):
                    raise Unauthenticated(
                        "who calls is told by the proxy in front of the guard, and this call did not come through it"
                    )
                return Identified(forwarded(headers), frozenset())
        return ANONYMOUS


def bearer(headers: Headers, tokens: Rotated[Tokens] | None) -> str:
    """The name of the bearer of the one token among the headers. Raises Unauthenticated."""
    wanted = "wanted the header authorization: Bearer TOKEN"
    given = [value for name, value in headers if name.lower() == AUTHORIZATION]
    if len(given) != 1:
        raise Unauthenticated(f"{'no token' if not given else 'several authorization headers'}; {wanted}")
    token = token_in(given[0]) if isinstance(given[0], str) else None
    if token is None:
        raise Unauthenticated(f"the authorization is of another form; {wanted}")
    name = tokens.value.bearer(token) if tokens is not None else None
    if name is None:
        raise Unauthenticated("the token is not known; it may have been replaced: ask the operator for another")
    return name


def forwarded(headers: Headers) -> str:
    """The principal that a trusted hop names. Raises Unauthenticated."""
    given = [value for name, value in headers if name.lower() == FORWARDED_CERTIFICATE]
    if not given:
        raise Unauthenticated(f"the proxy in front of the guard sent no {FORWARDED_CERTIFICATE}; it has to set it")
    last = given[-1]
    element = last_element(last) if isinstance(last, str) else None
    name = next((element[key] for key in NAMES if element.get(key)), None) if element else None
    if name is None:
        raise Unauthenticated(
            f"the {FORWARDED_CERTIFICATE} of the proxy in front of the guard names nobody; wanted URI, DNS or Subject"
        )
    return name


def last_element(text: str) -> Mapping[str, str] | None:
    """The last element of an x-forwarded-client-cert, its first value by key; None where the text is none."""
    element: dict[str, str] = {}
    place, end = 0, ";"
    if len(text) > MAX_XFCC_CHARACTERS:
        return None
    while place < len(text):
        if end == ",":
            element = {}
        found = XFCC_PART.match(text, place)
        if found is None:
            return None
        key, value, end = found.groups()
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        element.setdefault(key, value)
        place = found.end()
    return element if end == "" else None
