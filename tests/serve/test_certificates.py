"""Certificates and keys: what fits together is taken, and each way not to fit says what came and what was wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.certificates import Purpose, authorities_of, certificate_of
from guard.serve.identities import listener_identity, upstream_identity
from guard.serve.rest.tls import client_context, server_context
from guard.serve.rotation import MAX_FILE_BYTES, NamedFile, Rotated
from tests.serve.authority import Authority, Pair, authority_pem

SERVER, CLIENT = x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH
NAMED = {"named": "tls_certificate = 'a.crt'", "key_named": "tls_key = 'a.key'"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def encrypted(key: bytes) -> bytes:
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


@pytest.mark.parametrize("purpose", ["server", "client"])
@pytest.mark.parametrize("uses", [(), (SERVER, CLIENT)], ids=["any", "both"])
@pytest.mark.parametrize("days", [30, -1])
def test_what_fits_is_taken_and_its_end_is_known(
    authority: Authority, purpose: Purpose, uses: tuple[x509.ObjectIdentifier, ...], days: int
) -> None:
    pair = authority.issue(uses=uses, days=days)  # one that has ended is told, and not refused
    found = certificate_of(pair.chain, pair.key, purpose, **NAMED)
    assert (found.chain, found.key) == (pair.chain, pair.key)
    assert found.expires == pytest.approx(time.time() + days * 86400, abs=60)


def test_a_whole_chain_and_an_rsa_key(authority: Authority, tmp_path: Path) -> None:
    import trustme

    middle = trustme.CA().create_child_ca()
    found = middle.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    chain = b"".join(part.bytes() for part in found.cert_chain_pems)
    assert certificate_of(chain, found.private_key_pem.bytes(), "server", **NAMED).chain == chain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pair, other: (pair.chain, other.key), "a.key' does not belong to tls_certificate = 'a.crt'"),
        (lambda pair, other: (b"", pair.key), "a.crt' holds no certificate"),
        (lambda pair, other: (pair.chain, b""), "a.key' holds no private key"),
        (lambda pair, other: (pair.key, pair.chain), "a.crt' holds no certificate; wanted"),
        (lambda pair, other: (pair.chain, encrypted(pair.key)), "encrypted, and there is nobody to type"),
        (lambda pair, other: (pair.chain[:200], pair.key), "wanted"),
        (lambda pair, other: (pair.chain, pair.key[:80]), "wanted"),
        (lambda pair, other: (b"\xff\x00" * 100, b"\xff"), "holds no certificate"),
        (lambda pair, other: (pair.chain.replace(b"M", b"-", 40), pair.key), "wanted"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_is_refused(
    authority: Authority, change: Callable[[Pair, Pair], tuple[bytes, bytes]], said: str
) -> None:
    chain, key = change(authority.issue(), authority.issue())
    with pytest.raises(ConfigError) as caught:
        certificate_of(chain, key, "server", **NAMED)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("purpose", "use"), [("server", CLIENT), ("client", SERVER)])
def test_a_certificate_for_something_else(authority: Authority, purpose: Purpose, use: x509.ObjectIdentifier) -> None:
    pair = authority.issue(uses=(use,))
    with pytest.raises(ConfigError, match=f"is not for a {purpose}"):
        certificate_of(pair.chain, pair.key, purpose, **NAMED)


def test_authorities(authority: Authority) -> None:
    found = authorities_of(authority.pem * 2, named="tls_client_ca = 'ca'")
    assert found.expires > time.time()
    for wrong in (b"", b"nonsense", authority.issue().key):
        with pytest.raises(ConfigError, match="holds no certificates"):
            authorities_of(wrong, named="tls_client_ca = 'ca'")


@pytest.mark.parametrize("days", [(-1,), (400,), (-1, 400), (400, -1, 3)], ids=str)
def test_of_several_authorities_the_last_to_end_counts(days: tuple[float, ...]) -> None:
    """A file that was added to in a rotation is no alarm: certificates can lead to the new one."""
    pem = b"".join(authority_pem(days=one) for one in days)
    found = authorities_of(pem, named="tls_client_ca = 'ca'")
    assert found.expires == pytest.approx(time.time() + max(days) * 86400, abs=60)


COMMENTS = {"latin-1": "Autorité de Genève\n".encode("latin-1"), "utf-8": "Autorité — 认证\n".encode()}


@pytest.mark.parametrize("encoding", COMMENTS)
def test_comments_between_certificates_may_be_in_any_encoding(
    authority: Authority, tmp_path: Path, encoding: str
) -> None:
    comment = COMMENTS[encoding]
    own = authority.issue()
    certificate, key = Pair(comment + own.chain + comment, comment + own.key).write(tmp_path, "own")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(comment + authority.pem)
    config = ServeConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=str(ca))
    identity = listener_identity(config)
    assert identity is not None
    assert server_context(identity.value).cert_store_stats()["x509_ca"] == 1
    ca.write_bytes(authority.pem + comment + Authority().pem)
    assert identity.poll() == "replaced"
    assert server_context(identity.value).cert_store_stats()["x509_ca"] == 2
    assert client_context(identity.value).cert_store_stats()["x509_ca"] == 2
    broken = authority.pem[:200] + b"\xe9" + authority.pem[201:]
    ca.write_bytes(broken)
    assert [identity.poll() for _ in range(2)] == ["doubtful", "refused"]
    with pytest.raises(ConfigError, match="holds no certificates"):
        listener_identity(config)


def test_settings_that_mean_nothing_alone(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue().write(tmp_path, "own")
    for settings, said in (
        ({"tls_certificate": certificate}, "tls_key is not"),
        ({"tls_key": key}, "tls_certificate is not"),
        ({"tls_client_ca": certificate}, "set tls_certificate and tls_key"),
        ({"tls_certificate": certificate, "tls_key": str(tmp_path / "none")}, "No such file"),
        ({"tls_certificate": str(tmp_path), "tls_key": key}, "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=said):
            listener_identity(ServeConfig(**settings))  # type: ignore[arg-type]
    for settings, said in (
        ({"upstream_certificate": certificate, "upstream_key": key}, "set upstream_tls = true"),
        ({"upstream_tls": True, "upstream_key": key}, "upstream_certificate is not"),
    ):
        with pytest.raises(ConfigError, match=said):
            upstream_identity(ServeConfig(**settings))  # type: ignore[arg-type]
    assert listener_identity(ServeConfig()) is None
    assert upstream_identity(ServeConfig(upstream_tls=True)) is None


# files that change


def number(contents: tuple[bytes, ...]) -> int:
    """The sum of numbers; a word is refused."""
    try:
        return sum(map(int, contents))
    except ValueError as error:
        raise ConfigError(f"{contents[0]!r} is no number") from error


def test_files_that_are_replaced_in_any_way(tmp_path: Path) -> None:
    """By writing, by rename, as a volume of Kubernetes swaps `..data`, and by two writes with a moment between them."""
    first, second = tmp_path / "..1", tmp_path / "..2"
    for folder, text in ((first, "1"), (second, "2")):
        folder.mkdir()
        (folder / "a").write_text(text, "utf-8")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a").symlink_to("..data/a")
    (tmp_path / "b").write_text("10", "utf-8")
    rotated = Rotated((NamedFile("a", str(tmp_path / "a")), NamedFile("b", str(tmp_path / "b"))), number)
    assert (rotated.value, rotated.poll(), rotated.generation) == (11, "same", 0)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert (rotated.poll(), rotated.value, rotated.generation) == ("replaced", 12, 1)
    assert rotated.poll() == "same"
    (tmp_path / "b").write_text("20", "utf-8")
    assert (rotated.poll(), rotated.value) == ("replaced", 22)
    (tmp_path / "b").write_text("half of it", "utf-8")
    assert (rotated.poll(), rotated.value) == ("doubtful", 22)
    (tmp_path / "b").write_text("30", "utf-8")
    assert (rotated.poll(), rotated.value, rotated.fault) == ("replaced", 32, None)


def test_a_fault_of_ours_is_a_doubt_and_ends_no_watch(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1", "utf-8")
    rotated = Rotated((NamedFile("a", str(file)),), lambda contents: 1 // int(contents[0]))
    file.write_text("0", "utf-8")
    assert [rotated.poll() for _ in range(3)] == ["doubtful", "refused", "same"]
    assert "ZeroDivisionError" in str(rotated.fault)
    file.write_text("-1", "utf-8")
    assert (rotated.poll(), rotated.value) == ("replaced", -1)


def test_what_cannot_be_used_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1", "utf-8")
    rotated = Rotated((NamedFile("a", str(file)),), number)
    for write in (lambda: file.write_text("x", "utf-8"), file.unlink, lambda: file.write_bytes(b"1" * (1 << 23))):
        write()
        assert [rotated.poll() for _ in range(4)] == ["doubtful", "refused", "same", "same"]
        assert (rotated.value, rotated.generation) == (1, 0)
        assert rotated.fault
    assert str(MAX_FILE_BYTES) in str(rotated.fault)
    file.write_text("1", "utf-8")
    assert (rotated.poll(), rotated.fault) == ("same", None)
    file.write_text("x", "utf-8")
    assert [rotated.poll() for _ in range(2)] == ["doubtful", "refused"]  # told anew, since it was good in between
