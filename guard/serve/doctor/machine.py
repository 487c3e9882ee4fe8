"""Facts about the machine or pod that a process may read: addresses, listening sockets, and who has them.

How it works. Linux lists the TCP sockets of a network namespace, which the containers of a pod share, in
`/proc/net/tcp` and `tcp6`, and its own addresses in `/proc/net/fib_trie` and `if_inet6`. A socket's inode is a link in
the folder `fd` of the process that has it, readable for processes of the same user and container alone.

Rule 1: nothing here raises; what cannot be read is not known, and None says so where it matters.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guard.container import ROOT, lines

LISTEN = "0A"  # state of a socket in /proc/net/tcp
GLOBAL_SCOPE = "00"  # of an address in /proc/net/if_inet6
LEAF = re.compile(r"\|-- ([0-9.]+)$")
INODE = re.compile(r"socket:\[(\d+)\]")
WORD_BYTES = 4


@dataclass(frozen=True)
class ListeningSocket:
    """A TCP socket that listens: its address, its port, and the inode by which its process is found."""

    host: str
    port: int
    inode: str

    def answers_at(self, host: str) -> bool:
        """Whether a connection to this address of the machine reaches it."""
        own, wanted = ipaddress.ip_address(self.host), ipaddress.ip_address(host)
        if own == wanted:
            return True
        return own.is_unspecified and (own.version == wanted.version or own.version == 6)


@dataclass(frozen=True)
class Process:
    """A process that this one may look at."""

    pid: int
    words: tuple[str, ...]  # its command line

    def __str__(self) -> str:
        return f"process {self.pid} ({' '.join(self.words)[:60]})"


@dataclass(frozen=True)
class Machine:
    """The machine as its `/proc` and `/sys` show it below `root`; `own` stands for its addresses where it is given."""

    root: Path = ROOT
    own: tuple[str, ...] | None = None

    def addresses(self) -> tuple[str, ...]:
        """The addresses of this machine or pod that others can reach: all but loopback and those of one link."""
        if self.own is not None:
            return self.own
        found = [*self.addresses_v4(), *self.addresses_v6()] or list(addresses_by_name())
        return tuple(dict.fromkeys(one for one in found if not ipaddress.ip_address(one).is_loopback))

    def addresses_v4(self) -> Iterator[str]:
        last = ""
        for line in lines(self.root / "proc/net/fib_trie"):
            if found := LEAF.search(line.rstrip()):
                last = found[1]
            elif "/32 host LOCAL" in line:
                yield last

    def addresses_v6(self) -> Iterator[str]:
        for line in lines(self.root / "proc/net/if_inet6"):
            words = line.split()
            if len(words) == 6 and words[3] == GLOBAL_SCOPE:
                with suppress(ValueError):
                    yield str(ipaddress.IPv6Address(int(words[0], 16)))

    def listening(self) -> tuple[ListeningSocket, ...] | None:
        """The sockets that listen; None where the system does not list them."""
        files = [self.root / "proc/net" / name for name in ("tcp", "tcp6")]
        if not files[0].is_file():
            return None
        return tuple(one for file in files for line in lines(file)[1:] if (one := listening_socket(line)) is not None)

    def processes(self) -> Iterator[Process]:
        """Yield the processes whose command line can be read."""
        for folder in sorted(self.root.glob("proc/[0-9]*"), key=lambda folder: int(folder.name)):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                if any(words):
                    yield Process(int(folder.name), tuple(words[:-1]))

    def owner(self, port: int) -> Process | None:
        """The process that listens on a port; None where it is another user's, another container's, or none."""
        inodes = {one.inode for one in self.listening() or () if one.port == port}
        for process in self.processes():
            with suppress(OSError):
                for link in (self.root / f"proc/{process.pid}/fd").iterdir():
                    with suppress(OSError):
                        found = INODE.fullmatch(str(link.readlink()))
                        if found is not None and found[1] in inodes:
                            return process
        return None

    def mounted(self, path: str) -> bool:
        """Whether a file is mounted by itself, as Kubernetes does for `subPath`."""
        wanted = str(Path(path).absolute())
        return any(line.split(" ")[4:5] == [wanted] for line in lines(self.root / "proc/self/mountinfo"))


def listening_socket(line: str) -> ListeningSocket | None:
    """Read a line of /proc/net/tcp or tcp6; None where its socket does not listen."""
    words = line.split()
    if len(words) < 10 or words[3] != LISTEN:
        return None
    address, _, port = words[1].partition(":")
    with suppress(ValueError):
        raw = bytes.fromhex(address)
        if sys.byteorder == "little":
            raw = b"".join(raw[at : at + WORD_BYTES][::-1] for at in range(0, len(raw), WORD_BYTES))
        found = ipaddress.ip_address(raw)
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None  # gRPC's, of 127.0.0.1 too
        return ListeningSocket(str(mapped or found), int(port, 16), words[9])
    return None


def addresses_by_name() -> Iterator[str]:
    """Yield the addresses that this machine's own name leads to, where the system lists none."""
    with suppress(OSError):
        for *_, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            yield str(address[0]).partition("%")[0]


def resolved(host: str) -> tuple[str, ...]:
    """The addresses of a host's name or of an address as text; none where it leads nowhere."""
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))
    return ()
