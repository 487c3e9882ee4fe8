"""Signatures of bundles, checked both ways against OpenSSF's own `model_signing`, and every way to be refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from guard import cli
from guard.bundle import MANIFEST, SIGNATURE, Bundle
from guard.errors import BundleError, ConfigError
from guard.signature import authenticated
from guard.signing import Trust, open_trusted, sign
from tests.serve import tiny_bundle


def nobody() -> str:
    raise AssertionError("no password was needed")


def write_key(folder: Path, name: str, key: Any, encryption: KeySerializationEncryption | None = None) -> Path:
    """NAME.pem and NAME.pub."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    (folder / f"{name}.pem").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.pem, strangers.pem, and their .pub."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "strangers"):
        write_key(folder, name, ec.generate_private_key(ec.SECP256R1()))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.make(tmp_path_factory.mktemp("signing") / "original").path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


@pytest.fixture
def signed(bundle: Path, keys: Path) -> Path:
    sign(Bundle.open(bundle), keys / "ours.pem", ask=nobody)
    return bundle


def trust(keys: Path, *names: str, required: bool | None = None) -> Trust:
    return Trust.of([keys / f"{name}.pub" for name in names or ("ours",)], required=required)


def refused(bundle: Path, trusted: Trust, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_trusted(bundle, trusted)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def model_signing(side: Callable[[str], Path], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(side("signing") / "python"), "-m", "model_signing", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.mark.slow
def test_model_signing_accepts_what_is_signed_here(signed: Path, keys: Path, side: Callable[[str], Path]) -> None:
    def verified(key: str) -> subprocess.CompletedProcess[str]:
        public = keys / f"{key}.pub"
        return model_signing(side, "verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", public)

    accepted = verified("ours")
    assert accepted.returncode == 0, accepted.stderr
    assert "WARNING" not in accepted.stdout
    assert verified("strangers").returncode != 0
    with (signed / "samples.npz").open("ab") as stream:
        stream.write(b" ")
    assert verified("ours").returncode != 0


@pytest.mark.slow
def test_what_model_signing_signs_is_accepted_here(bundle: Path, keys: Path, side: Callable[[str], Path]) -> None:
    signature = bundle / SIGNATURE
    done = model_signing(side, "sign", "key", bundle, "--signature", signature, "--private_key", keys / "ours.pem")
    assert done.returncode == 0, done.stderr
    _, signer = open_trusted(bundle, trust(keys))
    assert signer is not None
    assert signer.file == str(keys / "ours.pub")
    refused(bundle, trust(keys, "strangers"), "not trusted")
    (bundle / "samples.npz").write_bytes(b"{}")
    refused(bundle, trust(keys), "samples.npz", "altered")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_signed_and_verified(bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = write_key(tmp_path, "key", ec.generate_private_key(curve))
    file, key_id = sign(Bundle.open(bundle), key, ask=nobody)
    assert file == bundle / SIGNATURE
    assert key_id == hashlib.sha256((tmp_path / "key.pub").read_bytes()).hexdigest()
    _, signer = open_trusted(bundle, Trust.of([tmp_path / "key.pub"]))
    assert signer is not None
    assert signer.id == key_id
    assert not list(bundle.glob(".*"))  # nothing half-written is left


def test_one_of_several_keys_is_enough(signed: Path, keys: Path) -> None:
    _, signer = open_trusted(signed, trust(keys, "strangers", "ours"))
    assert signer is not None
    assert signer.file.endswith("ours.pub")


def test_without_trusted_keys_a_signature_is_not_looked_at(signed: Path) -> None:
    (signed / SIGNATURE).write_bytes(b"nonsense")
    assert open_trusted(signed, Trust())[1] is None


def test_a_bundle_that_is_not_signed(bundle: Path, keys: Path) -> None:
    refused(bundle, trust(keys), "not signed", "guard sign", "require_signature = false")
    refused(bundle, trust(keys, required=True), "not signed")
    assert open_trusted(bundle, trust(keys, required=False))[1] is None


def test_a_strangers_key(signed: Path, keys: Path) -> None:
    for required in (True, False):
        refused(signed, trust(keys, "strangers", required=required), "not trusted", "strangers.pub", "trusted_keys")


@pytest.mark.parametrize("name", ["screen.onnx", "calibration.npz", "samples.npz"])
def test_a_changed_file(signed: Path, keys: Path, name: str) -> None:
    """Whoever changes a file on purpose makes the manifest say so, too."""
    with (signed / name).open("ab") as stream:
        stream.write(b"x")
    refused(signed, trust(keys), name, "altered")
    raw = json.loads((signed / MANIFEST).read_text("utf-8"))
    raw["files"][name] = hashlib.sha256((signed / name).read_bytes()).hexdigest()
    (signed / MANIFEST).write_text(json.dumps(raw), "utf-8")
    refused(signed, trust(keys), MANIFEST, "changed after the bundle was signed", "guard sign")


def test_a_missing_file(signed: Path, keys: Path) -> None:
    (signed / "screen.onnx").unlink()
    refused(signed, trust(keys), "screen.onnx", "missing")


def test_the_signature_of_another_bundle(signed: Path, keys: Path, tmp_path: Path) -> None:
    other = tiny_bundle.make(tmp_path / "other", provenance={"another": True})
    shutil.copy(signed / SIGNATURE, other.path / SIGNATURE)
    refused(other.path, trust(keys), "changed after the bundle was signed")


def test_swapped_files_are_found(signed: Path, keys: Path) -> None:
    first, second = (signed / "screen.onnx").read_bytes(), (signed / "interpret.onnx").read_bytes()
    (signed / "screen.onnx").write_bytes(second)
    (signed / "interpret.onnx").write_bytes(first)
    refused(signed, trust(keys), "interpret.onnx", "altered")


def test_what_a_mount_adds_is_reported_and_not_fatal(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (signed / "lost+found").mkdir()
    (signed / "..2026_11_27").mkdir()
    (signed / "..data").symlink_to("..2026_11_27")
    (signed / ".nfs0001").write_bytes(b"x")
    for file in sorted(signed.iterdir()):  # as a volume of Kubernetes shows them
        if file.is_file() and not file.name.startswith("."):
            file.rename(signed / "..2026_11_27" / file.name)
            file.symlink_to(f"..data/{file.name}")
    bundle, signer = open_trusted(signed, trust(keys))
    assert signer is not None
    assert bundle.beside == ("..2026_11_27", "..data", ".nfs0001", "lost+found")
    assert cli.run(["inspect", str(signed)]) == 0
    assert "lost+found" in capsys.readouterr().out


def resigned(bundle: Path, key: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what is signed, and sign it with the same key: such a statement is genuine and means something else."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    file = bundle / SIGNATURE
    raw = json.loads(file.read_text("utf-8"))
    statement = json.loads(base64.b64decode(raw["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    private: Any = load_pem_private_key(key.read_bytes(), None)
    raw["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature = private.sign(authenticated(payload), ec.ECDSA(hashes.SHA256()))
    raw["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    file.write_text(json.dumps(raw), "utf-8")


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        resources = [one for one in statement["predicate"]["resources"] if one["name"] != name]
        statement["predicate"]["resources"] = resources
        whole = b"".join(bytes.fromhex(one["digest"]) for one in resources)
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(whole).hexdigest()

    return change


def outside(statement: dict[str, Any]) -> None:
    statement["predicate"]["resources"][0]["name"] = "../../etc/passwd"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (without("screen.onnx"), "not signed, though"),
        (without(MANIFEST), f"{MANIFEST} is not signed, though"),
        (outside, "outside"),
        (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "Digests"),
        (lambda s: s.update(_type="other"), "wanted a statement"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "blake3"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "shards"),
        (lambda s: s["predicate"]["resources"][0].update(digest="00" * 32), "digest of the whole"),
        (lambda s: s["predicate"]["resources"].append({}), "KeyError"),
        (lambda s: s.update(subject=[]), "ValueError"),
        (lambda s: s.update(predicate=None), "TypeError"),
    ],
)
def test_a_genuine_signature_of_something_else(
    signed: Path, keys: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    resigned(signed, keys / "ours.pem", change)
    refused(signed, trust(keys), word)


def test_a_file_that_was_signed_beside_the_bundle(signed: Path, keys: Path) -> None:
    (signed / ".note").write_bytes(b"x")

    def change(statement: dict[str, Any]) -> None:
        digest = hashlib.sha256(b"x").hexdigest()
        statement["predicate"]["resources"].append({"name": ".note", "algorithm": "sha256", "digest": digest})
        without("")(statement)  # the digest of the whole

    resigned(signed, keys / "ours.pem", change)
    assert open_trusted(signed, trust(keys))[1] is not None
    (signed / ".note").write_bytes(b"y")
    refused(signed, trust(keys), ".note", "changed")
    (signed / ".note").unlink()
    refused(signed, trust(keys), ".note", "missing")


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["dsseEnvelope"].update(payload=base64.b64encode(b"{}").decode()),
        lambda raw: raw["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(b"0" * 70).decode()),
        lambda raw: raw["dsseEnvelope"]["signatures"][0].update(sig=""),
    ],
    ids=["payload", "signature", "nothing"],
)
def test_an_altered_signature(signed: Path, keys: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((signed / SIGNATURE).read_text("utf-8"))
    change(raw)
    (signed / SIGNATURE).write_text(json.dumps(raw), "utf-8")
    refused(signed, trust(keys), SIGNATURE, "altered")
    raw["verificationMaterial"]["publicKey"].pop("hint")  # without it every trusted key is tried
    (signed / SIGNATURE).write_text(json.dumps(raw), "utf-8")
    refused(signed, trust(keys), "not trusted")


def test_a_signature_that_names_no_key(signed: Path, keys: Path) -> None:
    raw = json.loads((signed / SIGNATURE).read_text("utf-8"))
    raw["verificationMaterial"]["publicKey"].pop("hint")
    (signed / SIGNATURE).write_text(json.dumps(raw), "utf-8")
    assert open_trusted(signed, trust(keys, "strangers", "ours"))[1] is not None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"mediaType": "x"}', b" " * (4 * 2**20 + 1)),
        b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": {"certificate": 1}, '
        b'"dsseEnvelope": {}}',
    ],
    ids=range(9),
)
def test_a_file_that_is_no_signature(signed: Path, keys: Path, content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    refused(signed, trust(keys), SIGNATURE, "guard sign")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key(bundle: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wrong").write_bytes(content)
    with pytest.raises(ConfigError, match="wanted PEM"):
        Trust.of([tmp_path / "wrong"])
    with pytest.raises(ConfigError, match="wanted PEM"):
        sign(Bundle.open(bundle), tmp_path / "wrong", ask=nobody)
    assert not (bundle / SIGNATURE).exists()


def test_keys_that_are_not_for_this(bundle: Path, keys: Path, tmp_path: Path) -> None:
    key = write_key(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    with pytest.raises(ConfigError, match="P-256"):
        sign(Bundle.open(bundle), key, ask=nobody)
    with pytest.raises(ConfigError, match="P-256"):
        Trust.of([tmp_path / "rsa.pub"])
    with pytest.raises(ConfigError, match="private key, which must not lie here"):
        Trust.of([keys / "ours.pem"])
    with pytest.raises(ConfigError, match="No such file"):
        Trust.of([tmp_path / "none"])
    with pytest.raises(ConfigError, match="needs trusted_keys"):
        Trust.of([], required=True)


def test_an_encrypted_key_asks_for_its_password(bundle: Path, tmp_path: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    key = write_key(tmp_path, "key", secret, BestAvailableEncryption(b"open"))
    with pytest.raises(ConfigError, match="password"):
        sign(Bundle.open(bundle), key, ask=lambda: "shut")
    sign(Bundle.open(bundle), key, ask=lambda: "open")
    assert open_trusted(bundle, Trust.of([tmp_path / "key.pub"]))[1] is not None


def test_the_command(bundle: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, strangers = str(keys / "ours.pub"), str(keys / "strangers.pub")
    key = str(keys / "ours.pem")
    assert cli.run(["inspect", str(bundle)]) == 0
    assert "signed      no" in capsys.readouterr().out
    assert cli.run(["sign", str(bundle), "--key", key]) == 0
    assert SIGNATURE in capsys.readouterr().out
    assert cli.run(["sign", str(bundle), "--key", key]) == 5
    assert "signed already" in capsys.readouterr().err
    assert cli.run(["sign", str(bundle), "--key", key, "--replace"]) == 0
    capsys.readouterr()
    assert cli.run(["inspect", str(bundle)]) == 0
    assert "not verified" in capsys.readouterr().out
    assert cli.run(["inspect", str(bundle), "--trusted-key", ours]) == 0
    said = capsys.readouterr().out
    assert ", verified" in " ".join(said.split())
    assert cli.run(["inspect", str(bundle), "--trusted-key", strangers]) == 5
    assert "not trusted" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(bundle: Path, keys: Path) -> None:
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cryptography': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from guard.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "sign", str(bundle), "--key", str(keys / "ours.pem")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "guard: this command needs cryptography; install inference-guard[cpu,sign]\n"
