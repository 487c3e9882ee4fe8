"""What `/proc` says of addresses, listening sockets and their processes, from made-up files and from this machine."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from guard.serve.doctor.machine import ListeningSocket, Machine, listening_socket, resolved
from guard.serve.doctor.running_guard import running_guards, serve_flags

TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.1.0.0
        /24 link UNICAST
     |-- 10.1.0.7
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.1.0.255
        /32 link BROADCAST
Local:
     |-- 10.1.0.7
        /32 host LOCAL
"""
INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000001 02 40 20 80     eth0
fd000000000000000000000000000007 02 40 00 80     eth0
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="the files below were written by a little-endian machine")
@pytest.mark.parametrize(
    ("address", "state", "found"),
    [
        ("0100007F:2328", "0A", ("127.0.0.1", 9000)),
        ("00000000:1F91", "0A", ("0.0.0.0", 8081)),
        ("00000000000000000000000000000000:1F91", "0A", ("::", 8081)),
        ("0000000000000000FFFF00000100007F:2328", "0A", ("127.0.0.1", 9000)),  # gRPC listens so
        ("0100007F:2328", "01", None),
        ("nonsense", "0A", None),
    ],
)
def test_a_line_of_the_kernel_s_list(address: str, state: str, found: tuple[str, int] | None) -> None:
    line = f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000  0 4711 1 0 100"
    assert listening_socket(line) == (ListeningSocket(*found, "4711") if found else None)
    assert listening_socket("  sl  local_address rem_address   st") is None


def test_which_sockets_answer_at_an_address() -> None:
    def answers(host: str, at: str) -> bool:
        return ListeningSocket(host, 9000, "1").answers_at(at)

    assert answers("0.0.0.0", "10.1.0.7")
    assert answers("::", "10.1.0.7")
    assert answers("::", "fd00::7")
    assert answers("10.1.0.7", "10.1.0.7")
    assert not answers("0.0.0.0", "fd00::7")
    assert not answers("127.0.0.1", "10.1.0.7")


def test_own_addresses_are_those_that_others_can_reach(tmp_path: Path) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/fib_trie").write_text(TRIE)
    (tmp_path / "proc/net/if_inet6").write_text(INET6)
    assert Machine(tmp_path).addresses() == ("10.1.0.7", "fd00::7")
    assert Machine(tmp_path).listening() is None  # it is not listed: known ports are tried
    assert not any(address.startswith("127.") for address in Machine(tmp_path / "nowhere").addresses())


def test_this_machine_tells_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ("127.0.0.1", port) in {(one.host, one.port) for one in Machine().listening() or ()}
        owner = Machine().owner(port)
        assert owner is not None
        assert owner.pid == os.getpid()
        assert f"process {os.getpid()} (" in str(owner)


def test_names_lead_to_addresses() -> None:
    assert resolved("[::1]") == ("::1",)
    assert "127.0.0.1" in resolved("localhost")
    assert resolved("no.such.host.invalid") == ()


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("/opt/guard/bin/python /opt/guard/bin/guard serve --bundle=/bundle", ("--bundle=/bundle",)),
        ("python -m guard serve --mode shadow", ("--mode", "shadow")),
        ("guard serve", ()),
        ("guard drain 127.0.0.1:8083", None),
        ("grep serve guard", None),
    ],
)
def test_the_flags_of_a_guard_that_runs(words: str, flags: tuple[str, ...] | None) -> None:
    assert serve_flags(words.split()) == flags


def test_guards_that_run_are_found(tmp_path: Path) -> None:
    processes = {1: "/opt/guard/bin/guard\0serve\0--bundle=/bundle\0", 12: "sleep\0" + "10\0", 40: ""}
    for number, words in processes.items():
        (tmp_path / f"proc/{number}").mkdir(parents=True)
        (tmp_path / f"proc/{number}/cmdline").write_text(words)
        (tmp_path / f"proc/{number}/environ").write_text("GUARD_MODE=shadow\0HOME=/\0")
    (found,) = running_guards(Machine(tmp_path))
    assert (found.process.pid, found.flags, found.environment["GUARD_MODE"]) == (1, ("--bundle=/bundle",), "shadow")


def test_a_file_that_is_mounted_by_itself(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    mount = "41 31 8:1 /x /etc/guard/guard.toml ro - ext4 /dev/sda1 ro\n42 31 8:1 /y /bundle ro - ext4 /dev/sda1 ro\n"
    (tmp_path / "proc/self/mountinfo").write_text(mount)
    assert Machine(tmp_path).mounted("/etc/guard/guard.toml")
    assert not Machine(tmp_path).mounted("/bundle/manifest.json")
