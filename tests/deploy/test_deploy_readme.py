"""What deploy/README.md tells to write and to run for Kubernetes is right, as far as that goes without a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.deploy.manifests import Object, faults, kustomize, pods, read, read_all
from tests.deploy.reference_faults import OUTSIDE
from tests.side import ROOT

README = (ROOT / "deploy/README.md").read_text("utf-8")
CREATE = sorted(set(re.findall(r"`(kubectl create [^`]+)`", README)))


@pytest.fixture(scope="module")
def example(side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """What the page's own kustomization renders, beside a copy of deploy/kustomize."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "deploy/kustomize", folder / "kustomize")
    text, *_ = re.findall(r"```yaml\n(# kustomization.yaml\n.*?)```", README, re.DOTALL)  # others are of training
    (folder / "kustomization.yaml").write_text(text, "utf-8")
    return read(kustomize(folder, side("kubectl")), side("kubectl"))


def test_the_example_names_images_and_namespace_everywhere(example: list[Object]) -> None:
    assert faults(example) == []
    (pod,) = pods(example)
    assert {one["image"].partition("/")[0] for one in pod.before + pod.beside} == {"registry.example"}
    assert {one["metadata"].get("namespace") for one in example} == {"models"}


def test_what_the_overlays_need_is_what_the_page_creates(side: Callable[[str], Path], tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("guard.example")
    (tmp_path / "tls.crt").write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    (tmp_path / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (tmp_path / "signer.pub").write_text("a key", "utf-8")
    texts = {}
    for command in CREATE:
        words = [side("kubectl") / "kubectl", *shlex.split(command)[1:], "--dry-run=client", "--output=yaml"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr
        texts[command] = done.stdout
    made = [one for (one,) in read_all(texts, side("kubectl")).values()]
    assert {one["kind"]: (one["metadata"]["name"],) for one in made} == OUTSIDE
    assert {one["kind"]: sorted(one["data"]) for one in made} == {
        "ConfigMap": ["signer.pub"],
        "Secret": ["tls.crt", "tls.key"],
    }
