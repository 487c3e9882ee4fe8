"""Who calls: tokens of a file, what a proxy says of its client, and what counts for nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from guard.config import ServeConfig
from guard.errors import ConfigError, Unauthenticated
from guard.serve.principal import AUTHORIZATION, FORWARDED_CERTIFICATE, Hops, Peer, Principals, last_element
from guard.serve.rotation import NamedFile, Rotated
from guard.serve.tokens import tokens_of

TOKEN, OTHER = "0123456789abcdef", "another-token-of-some-length=="
LOCAL = Peer("127.0.0.1")


def rotated(folder: Path, text: str) -> Rotated[Any]:
    file = folder / "tokens"
    file.write_text(text, "utf-8")
    return Rotated((NamedFile("client_tokens", str(file)),), lambda contents: tokens_of(contents[0], named="tokens"))


def bearer(folder: Path, text: str = f"# those we know\n\ncamera {TOKEN}\n  jobs\t{OTHER}  \n") -> Principals:
    return Principals("bearer", rotated(folder, text))


@pytest.mark.parametrize(
    ("header", "name"),
    [(f"Bearer {TOKEN}", "camera"), (f"bearer {OTHER}", "jobs"), (f"BEARER   {TOKEN}  ", "camera")],
)
def test_a_token_that_is_known(tmp_path: Path, header: str, name: str) -> None:
    found = bearer(tmp_path).identify([("other", "x"), (AUTHORIZATION, header)], LOCAL)
    assert found.principal == name
    assert AUTHORIZATION in found.withheld
    assert FORWARDED_CERTIFICATE in found.withheld


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "no token"),
        ([(AUTHORIZATION, f"Bearer {TOKEN}")] * 2, "several"),
        ([(AUTHORIZATION, TOKEN)], "another form"),
        ([(AUTHORIZATION, "Basic dXNlcjpwYXNzd29yZA==")], "another form"),
        ([(AUTHORIZATION, "Bearer")], "another form"),
        ([(AUTHORIZATION, f"Bearer {TOKEN} {TOKEN}")], "another form"),
        ([(AUTHORIZATION, b"Bearer x")], "another form"),
        ([(AUTHORIZATION, f"Bearer {TOKEN}x")], "not known"),
        ([(AUTHORIZATION, "Bearer camera")], "not known"),
        ([(AUTHORIZATION, f"Bearer sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}")], "not known"),
        ([(AUTHORIZATION, "Bearer \udcff\x00")], "not known"),
    ],
    ids=range(11),
)
def test_a_token_that_is_not(tmp_path: Path, headers: list[tuple[str, str | bytes]], said: str) -> None:
    with pytest.raises(Unauthenticated, match=said) as caught:
        bearer(tmp_path).identify(headers, LOCAL)
    assert TOKEN not in str(caught.value)


def test_a_file_may_hold_nothing_but_digests(tmp_path: Path) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    principals = bearer(tmp_path, f"camera sha256:{digest}\ncamera {OTHER}\n")
    for token in (TOKEN, OTHER):  # two of one name, while one replaces the other
        assert principals.identify([(AUTHORIZATION, f"Bearer {token}")], LOCAL).principal == "camera"


def test_tokens_are_replaced(tmp_path: Path) -> None:
    principals = bearer(tmp_path)
    assert principals.tokens is not None
    (tmp_path / "tokens").write_text(f"camera {OTHER}\n", "utf-8")
    assert principals.tokens.poll() == "replaced"
    assert principals.identify([(AUTHORIZATION, f"Bearer {OTHER}")], LOCAL).principal == "camera"
    with pytest.raises(Unauthenticated):
        principals.identify([(AUTHORIZATION, f"Bearer {TOKEN}")], LOCAL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        (TOKEN, "line 1: 1 words"),
        (f"a {TOKEN}\nb c {OTHER}", "line 2: 3 words"),
        ("a short", "can be guessed"),
        (f"a {TOKEN}ü", "a character that no token may have"),
        ("a sha256:abc", "not 64 digits"),
        (f"a {TOKEN}\nb {TOKEN}", "line 2: 'b' has the same token as 'a'"),
        (f"\x07 {TOKEN}", "line 1"),
    ],
)
def test_a_file_of_tokens_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rotated(tmp_path, text)
    assert said in str(caught.value)
    assert TOKEN not in str(caught.value)


HASH = "Hash=" + "ab" * 32
ISTIO = f'By=spiffe://cluster.local/ns/a/sa/guard;{HASH};Subject="";URI=spiffe://cluster.local/ns/b/sa/camera'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ISTIO, "spiffe://cluster.local/ns/b/sa/camera"),
        (f"{HASH};DNS=a.example;DNS=b.example", "a.example"),
        (f'{HASH};Subject="CN=camera,OU=\\"x\\",O=a, b"', 'CN=camera,OU="x",O=a, b'),
        (f"URI=spiffe://forged,{ISTIO}", "spiffe://cluster.local/ns/b/sa/camera"),  # the hop appends its own
        (f'Subject="CN=a,URI=spiffe://forged;x";{HASH};DNS=true.example', "true.example"),
    ],
)
def test_what_a_trusted_hop_says(text: str, name: str) -> None:
    principals = Principals("xfcc", hops=Hops.of(["127.0.0.6/32"]))
    found = principals.identify(
        [(FORWARDED_CERTIFICATE, "URI=other"), (FORWARDED_CERTIFICATE, text)], Peer("127.0.0.6")
    )
    assert found.principal == name
    assert FORWARDED_CERTIFICATE not in found.withheld


@pytest.mark.parametrize(
    "text", ["", "x", HASH, 'Subject=""', "URI=a,", "URI=a;", 'URI="a', "URI", "=a", ",", f"{HASH};;", "URI=a," * 9999]
)
def test_what_names_nobody(text: str) -> None:
    principals = Principals("xfcc", hops=Hops.of(["127.0.0.0/8"]))
    with pytest.raises(Unauthenticated, match="names nobody"):
        principals.identify([(FORWARDED_CERTIFICATE, text)], LOCAL)
    with pytest.raises(Unauthenticated, match="has to set it"):
        principals.identify([], LOCAL)


def test_an_element_with_a_lot_of_backslashes_is_read_in_no_time() -> None:
    assert last_element('Subject="' + "\\" * 16000) is None


@pytest.mark.parametrize(
    ("hops", "peer", "trusted"),
    [
        (["10.0.0.0/8"], Peer("10.1.2.3"), True),
        (["10.0.0.0/8"], Peer("11.1.2.3"), False),
        (["10.0.0.1"], Peer("10.0.0.1"), True),
        (["10.0.0.0/8"], Peer("::ffff:10.1.2.3"), True),
        (["fd00::/8"], Peer("fd00::1"), True),
        (["10.0.0.0/8"], Peer("unix"), False),
        (["unix"], Peer("unix"), True),
        (["unix"], LOCAL, False),
        (["spiffe://mesh/gateway"], Peer("10.0.0.1", ("spiffe://mesh/gateway",)), True),
        (["spiffe://mesh/gateway"], Peer("10.0.0.1", ("spiffe://mesh/other",)), False),
        (["10.0.0.0/8"], Peer("", ()), False),
        ([], LOCAL, False),
    ],
    ids=range(12),
)
def test_which_hops_are_trusted(hops: list[str], peer: Peer, *, trusted: bool) -> None:
    assert Hops.of(hops).has(peer) is trusted
    if hops and not trusted:
        with pytest.raises(Unauthenticated, match="did not come through"):
            Principals("xfcc", hops=Hops.of(hops)).identify([(FORWARDED_CERTIFICATE, ISTIO)], peer)


def test_a_certificate_names_its_bearer() -> None:
    principals = Principals("tls")
    assert principals.identify([], Peer("127.0.0.1", ("spiffe://a", "b"))).principal == "spiffe://a"
    with pytest.raises(Unauthenticated, match="names nobody"):
        principals.identify([], Peer("127.0.0.1"))
    assert Principals().identify([(AUTHORIZATION, "x")], LOCAL).withheld == {FORWARDED_CERTIFICATE}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"principal_from": "tls"}, "needs tls_client_ca"),
        ({"principal_from": "bearer"}, "needs client_tokens"),
        ({"principal_from": "xfcc"}, "needs trusted_hops"),
        ({"principal_from": "xfcc", "trusted_hops": ("gateway",)}, "is no network"),
        ({"principal_from": "tls", "tls_client_ca": "x", "trusted_hops": ("unix",)}, 'set principal_from = "xfcc"'),
        ({"client_tokens": "x"}, 'set principal_from = "bearer"'),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Principals.of(ServeConfig(**settings), None)
