"""A guard that trusts keys: which bundles it serves, what it says of them, and that it refuses before it listens."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import guard
from guard.bundle import SIGNATURE, Bundle
from guard.errors import BundleError, ConfigError, UserError
from guard.serve.log import Log
from guard.serve.server import running
from guard.signing import sign
from tests.serve import tiny_bundle
from tests.serve.fake_upstream import FakeUpstream
from tests.serve.guarded import config_for, guarding
from tests.serve.test_reload import relink, reloading

ORDINARY = tiny_bundle.ordinary(1)


def key(folder: Path, name: str) -> tuple[Path, str]:
    """The files of a new private key, and of its public key."""
    made = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, str(public)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def refused(bundle: Path, error: type[UserError], said: str, **settings: Any) -> None:
    async def start() -> None:
        async with running(config_for(bundle, "127.0.0.1:1", **settings), log=Log("error")):
            pass

    with pytest.raises(error, match=said):
        asyncio.run(start())


def served(bundle: Path, check: Callable[[Any], None], **settings: Any) -> None:
    async def story() -> None:
        async with guarding(bundle, **settings) as guarded:
            assert (await guarded.client.infer(ORDINARY)).ok
            check(guarded)

    asyncio.run(story())


def test_only_what_a_trusted_key_has_signed_is_served(own: Path, tmp_path: Path) -> None:
    ours, public = key(tmp_path, "ours")
    _, strangers = key(tmp_path, "strangers")
    trusted = {"trusted_keys": (public,)}
    refused(own, BundleError, "is not signed.*guard sign", **trusted)
    _, key_id = sign(Bundle.open(own), ours, ask=str)
    (own / "lost+found").mkdir()

    def check(guarded: Any) -> None:
        assert guarded.events("guarding")[0]["signed_by"] == key_id
        assert guarded.events("beside the bundle")[0]["ignored"] == ["lost+found"]

    served(own, check, **trusted)
    served(own, lambda guarded: None, trusted_keys=(strangers, public))
    refused(own, BundleError, "which is not trusted", trusted_keys=(strangers,))
    with (own / SIGNATURE).open("ab") as stream:
        stream.write(b"x")
    refused(own, BundleError, "no signature that can be read", **trusted)
    served(own, lambda guarded: None)  # without trusted keys nobody looks at it


def test_a_signature_may_be_left_out_if_the_settings_say_so(own: Path, tmp_path: Path) -> None:
    _, public = key(tmp_path, "ours")

    def check(guarded: Any) -> None:
        assert guarded.events("bundle not signed")[0]["level"] == "warning"
        assert guarded.events("guarding")[0]["signed_by"] is None

    served(own, check, trusted_keys=(public,), require_signature=False)


def test_settings_that_cannot_be_kept(own: Path, tmp_path: Path) -> None:
    refused(own, ConfigError, "needs trusted_keys", require_signature=True)
    refused(own, ConfigError, "No such file", trusted_keys=(str(tmp_path / "none"),))


def test_in_process_too(own: Path, tmp_path: Path) -> None:
    ours, public = key(tmp_path, "ours")
    with pytest.raises(BundleError, match="is not signed"):
        guard.open(own, trusted_keys=[public])
    sign(Bundle.open(own), ours, ask=str)
    assert guard.open(own, trusted_keys=[public]).inspect(ORDINARY).verdict.request == "pass"


def test_a_bundle_that_is_swapped_in_must_be_signed_too(own: Path, tmp_path: Path) -> None:
    """One that is unsigned, signed by a stranger or changed since stays out; a key that is replaced counts at once."""
    (ours, public), (strangers, other) = key(tmp_path, "ours"), key(tmp_path, "strangers")
    sign(Bundle.open(own), ours, ask=str)
    made = [tiny_bundle.make(tmp_path / name, provenance={"made": name}).path for name in ("first", "second", "third")]
    sign(Bundle.open(made[1]), strangers, ask=str)
    shutil.copy(own / SIGNATURE, made[2] / SIGNATURE)
    link = tmp_path / "current"
    link.symlink_to(own)

    async def story() -> None:
        (tmp_path / "settings").mkdir()
        text = f'bundle = "{link}"\ntrusted_keys = ["{public}"]\n'
        async with reloading(tmp_path / "settings", text, upstream=FakeUpstream()) as guarded:
            digest = guarded.serving.models.table.models[0].bundle.digest
            for wrong, said in zip(made, ("not signed", "not trusted", "changed after"), strict=True):
                relink(link, wrong)
                with pytest.raises(BundleError, match=said):
                    await guarded.reload()
                assert said in guarded.events("reload failed")[-1]["cause"]
                assert guarded.serving.models.table.models[0].bundle.digest == digest
                assert (await guarded.client.infer(ORDINARY)).ok
            (made[0] / SIGNATURE).unlink(missing_ok=True)
            sign(Bundle.open(made[0]), ours, ask=str)
            relink(link, made[0])
            assert (await guarded.reload()).result == "applied"
            assert guarded.events("guarding")[-1]["signed_by"] is not None
            shutil.copy(other, public)  # ours is no longer trusted: what is at work stays, what comes must be theirs
            with pytest.raises(BundleError, match="not trusted"):
                await guarded.reload()
            relink(link, made[1])
            assert (await guarded.reload()).result == "applied"

    asyncio.run(story())
