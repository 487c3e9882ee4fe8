"""The address of a model server as gRPC takes it: HOST:PORT, or a target with a scheme.

HOST:PORT                          resolved by DNS, one of its addresses
dns:///NAME:PORT                   resolved by DNS, all of its addresses in turn
ipv4:A:PORT,B:PORT  ipv6:[A]:PORT  these addresses in turn
unix:PATH  unix:///PATH            a unix socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_PORT_CHARACTERS = 5
MAX_SOCKET_PATH_BYTES = 107  # of a unix socket, by the kernel's sockaddr_un
WANTED = "HOST:PORT, dns:///NAME:PORT, unix:PATH, ipv4:ADDRESS:PORT or ipv6:[ADDRESS]:PORT"
SCHEME = re.compile(r"([a-z][a-z0-9+-]*)://|(dns|unix|ipv4|ipv6):")  # as gRPC does: no host has such a name
IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
IPV6 = re.compile(r"\[[0-9A-Fa-f:.]+(%\w+)?\]")
URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}(/[A-Za-z0-9._~/-]*)?")
AUTHORITY = re.compile(r"[A-Za-z0-9._~-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


@dataclass(frozen=True)
class Target:
    """A gRPC target, and whether calls go to each of its addresses in turn."""

    text: str
    in_turn: bool


def parse_target(text: str) -> Target | None:
    """Parse what `upstream` may be; None when the text is none of these forms."""
    scheme, rest = "", text
    if found := SCHEME.match(text):
        scheme = found.group(1) or found.group(2)
        rest = text[len(scheme) + 1 :]
    match scheme:
        case "":
            return Target(text, in_turn=False) if is_host_and_port(text) else None
        case "dns":
            name = re.sub("^//[^/]*/", "", rest)  # //SERVER/ asks that name server
            return Target(text, in_turn=True) if is_host_and_port(name) else None
        case "unix":
            return Target(text, in_turn=False) if is_socket_path(rest) else None
        case "ipv4" | "ipv6":
            kind = IPV4 if scheme == "ipv4" else IPV6
            addresses = [split_address(part) for part in rest.split(",")]
            right = all(address is not None and kind.fullmatch(address[0]) for address in addresses)
            return Target(text, in_turn=True) if right else None
        case _:
            return None


def hosts_and_ports(text: str) -> list[tuple[str, int]]:
    """List the addresses of a target, names as they stand in it; none of a unix socket, or of what is no target."""
    found = SCHEME.match(text)
    scheme = (found.group(1) or found.group(2)) if found else ""
    rest = text[len(scheme) + 1 :] if scheme else text
    parts = [] if scheme == "unix" else re.sub("^//[^/]*/", "", rest).split(",")
    return [address for part in parts if (address := split_address(part)) is not None]


def is_host_and_port(text: str) -> bool:
    address = split_address(text)
    return address is not None and not re.search(r"[\s/,@]", address[0])


def is_socket_path(text: str) -> bool:
    """Whether this is the path of a unix socket, behind `unix:`; behind `//` it is an absolute one."""
    path = text.removeprefix("//")
    absolute = path.startswith("/")
    short_enough = 0 < len(path.encode("utf-8", "surrogateescape")) <= MAX_SOCKET_PATH_BYTES
    return short_enough and path.isprintable() and (absolute or path == text)


def socket_path(text: str) -> str | None:
    """The path of the unix socket that `unix:PATH` or `unix:///PATH` names; None where the text is neither."""
    scheme, _, rest = text.partition(":")
    return rest.removeprefix("//") if scheme == "unix" and is_socket_path(rest) else None


def is_authority(text: str) -> bool:
    """Whether this can stand in the header :authority: a host, with or without a port."""
    return AUTHORITY.fullmatch(text) is not None


def is_url(text: str) -> bool:
    """Whether this is http://HOST:PORT or https://HOST:PORT, with or without a path in front of the protocol's own."""
    return URL.fullmatch(text) is not None and int(re.sub(r".*:(\d+)(/.*)?", r"\1", text)) < 65536


def is_http_url(text: str) -> bool:
    """Whether this is the URL of an HTTP server that can be posted to: a host, with or without port, path and query."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and "@" not in parts.netloc
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not parts.fragment


def split_address(text: str) -> tuple[str, int] | None:
    """Split HOST:PORT into host and port; None when the text is not of that form."""
    host, colon, port = text.rpartition(":")
    is_port = port.isdecimal() and len(port) <= MAX_PORT_CHARACTERS and int(port) < 65536
    return (host, int(port)) if colon and host and is_port else None
