"""Addresses: which texts are the target of a model server, and which are none."""

from __future__ import annotations

import pytest

from guard.target import MAX_SOCKET_PATH_BYTES, is_authority, parse_target, split_address


@pytest.mark.parametrize(
    ("text", "in_turn"),
    [
        ("model:80", False),
        ("[::1]:80", False),
        ("unix:80", False),  # a socket of that name
        ("dns:///model.models.svc:9000", True),
        ("dns:model:9000", True),
        ("dns://10.0.0.10:53/model:9000", True),
        ("ipv4:10.0.0.1:80", True),
        ("ipv4:10.0.0.1:80,10.0.0.2:81", True),
        ("ipv6:[::1]:80,[fe80::1%25lo]:81", True),
        ("unix:model.sock", False),
        ("unix:/run/model.sock", False),
        ("unix:///run/model.sock", False),
    ],
)
def test_targets(text: str, *, in_turn: bool) -> None:
    found = parse_target(text)
    assert found is not None
    assert (found.text, found.in_turn) == (text, in_turn)


@pytest.mark.parametrize(
    "text",
    [
        *("model", "model:http", ":80", "model:65536", "a b:80", "a,b:80", "user@model:80", "model/path:80"),
        *(
            "http://model:80",
            "https://model",
            "grpc://model:80",
            "xds:///model",
            "dns:///model",
            "dns:///:80",
            "dns:///",
            "dns:80",
        ),
        *("ipv4:model:80", "ipv4:10.0.0.1", "ipv4:10.0.0.1:80,", "ipv6:::1:80", "ipv6:[::1]"),
        *("unix:", "unix://", "unix://relative", "unix:a\nb", "unix:/" + "x" * MAX_SOCKET_PATH_BYTES),
    ],
)
def test_what_is_no_target(text: str) -> None:
    assert parse_target(text) is None


@pytest.mark.parametrize("text", ["m", "m.svc:80", "[::1]:80", "[::1]"])
def test_authorities(text: str) -> None:
    assert is_authority(text)


@pytest.mark.parametrize("text", ["", "a b", "http://m", "m/", "m:", "m:x", "::1", "m\n"])
def test_what_is_no_authority(text: str) -> None:
    assert not is_authority(text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("[::1]", 80)),
        ("a:0", ("a", 0)),
        ("a:65536", None),
        (":80", None),
        ("a:", None),
        ("a", None),
        ("a:-1", None),
        ("a:²", None),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int] | None) -> None:
    assert split_address(text) == parsed
