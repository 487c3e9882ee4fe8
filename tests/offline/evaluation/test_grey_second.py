"""The attacker who knows all but the second network's weights: attacks a substitute, and is counted by the guard."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import guard.offline.evaluation.adaptive_rows as adaptive_rows
from guard.bundle import Bundle
from guard.errors import ConfigError
from guard.offline.adversary.directions import Method
from guard.offline.adversary.runs import Adversary
from guard.offline.data.dataset import Dataset
from guard.offline.detectors.second_opinion import SecondOpinion, SecondOpinionHead
from guard.offline.evaluation.adaptive_rows import AdaptiveStage
from guard.offline.evaluation.effort import Size
from guard.offline.evaluation.grey_second import other_networks, with_other_networks
from guard.offline.evidence.kinds.second import SecondLogits, SecondNetwork
from guard.offline.findings.intervals import promises_of
from guard.offline.programs.opened_guard import OpenedGuard
from guard.offline.programs.read import read
from guard.offline.work.directory import WorkDirectory
from tests.offline import tiny
from tests.spy import spied


def asking(subject: OpenedGuard, network: SecondNetwork) -> OpenedGuard:
    """The tiny guard as if the first detector of its second program asked this network."""
    detector = SecondOpinion((network,))
    head = SecondOpinionHead(detector, torch.tensor([[0.1, 2.0]]))
    programs = {**subject.programs, "interpret": [detector, *subject.programs["interpret"][1:]]}
    return replace(subject, programs=programs, heads={**subject.heads, detector.name: head})


def otherwise(network: SecondNetwork) -> SecondNetwork:
    """The network with other weights."""
    other = copy.deepcopy(network.network)
    with torch.no_grad():
        for value in other.parameters():
            value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    return SecondNetwork("other", "f" * 64, network.forwards, other)


def test_only_the_second_opinion_is_anothers(tiny_subject: OpenedGuard) -> None:
    network = tiny.second_network("images")
    subject, other = asking(tiny_subject, network), otherwise(network)
    grey = with_other_networks(subject, [other])
    images = torch.from_numpy(tiny.data(40, seed=73)[0])
    evidence = subject.joint().evidence(images)
    own, found = (guard.joint().scores(guard.joint().evidence(images)) for guard in (subject, grey))
    place = [detector.name for detector in grey.detectors].index("second_opinion")
    same = [column for column in range(own.shape[1]) if column != place]
    torch.testing.assert_close(own[:, same], found[:, same])
    assert float((own[:, place] - found[:, place]).abs().max()) > 0.1
    expected = grey.heads["second_opinion"]({**evidence, SecondLogits(other): other.network(images)})
    torch.testing.assert_close(found[:, place], expected)
    assert grey.cascade is subject.cascade, "thresholds are the guard's own"
    assert grey.identity != subject.identity
    assert with_other_networks(subject, [replace(other, digest="e" * 64)]).identity != grey.identity


def test_what_is_no_substitute_is_refused(tiny_subject: OpenedGuard) -> None:
    network = tiny.second_network("images")
    subject, other = asking(tiny_subject, network), otherwise(network)
    with pytest.raises(ConfigError, match="small has the guard's own weights"):
        with_other_networks(subject, [network])
    with pytest.raises(ConfigError, match="has 2 second networks, and the guard asks 1"):
        with_other_networks(subject, [other, network])
    with pytest.raises(ConfigError, match="has 1 second networks, and the guard asks 0"):
        with_other_networks(tiny_subject, [other])


def test_a_model_can_be_given(tiny_subject: OpenedGuard) -> None:
    classifier = tiny_subject.classifier
    (found,) = other_networks("tests.offline.tiny:image_model", classifier.spec, classifier)
    assert found.forwards > 0
    images = torch.from_numpy(tiny.data(4, seed=74)[0])
    assert found.network(images).shape == (4, tiny.CLASSES)


def test_the_guard_of_another_model_is_refused(tiny_bundle: Bundle, tiny_subject: OpenedGuard) -> None:
    """What its networks would be asked, they were not made for."""
    own, classifier, given = tiny_bundle.manifest.model, tiny_subject.classifier, str(tiny_bundle.path)
    assert other_networks(given, own, classifier) == ()
    named = replace(own, output=replace(own.output, labels=("a", "b", "c")))
    assert other_networks(given, named, classifier) == (), "the other says nothing of names"
    cases = {
        r"items of shape \[1, 8, 8\], this bundle one of \[3, 32, 32\]": replace(
            own, input=replace(own.input, shape=(3, 32, 32))
        ),
        r"values up to \[1.0\], this bundle one of \[255.0\]": replace(own, input=replace(own.input, high=(255.0,))),
        "so many classes: 3, this bundle one of 5": replace(own, output=replace(own.output, classes=5)),
    }
    for words, spec in cases.items():
        with pytest.raises(ConfigError, match=f"--grey-second .* guards a model of {words}"):
            other_networks(given, spec, classifier)


def test_the_substitute_is_attacked_and_the_guard_judges(
    tiny_subject: OpenedGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny.second_network("images")
    subject = asking(tiny_subject, network)
    grey = with_other_networks(subject, [otherwise(network)])
    images, labels = tiny.data(60, seed=75)
    held_out = Dataset(images, labels, np.asarray([f"{place:064d}" for place in range(len(images))]))
    methods: tuple[Method, ...] = ("selective",)
    promises = promises_of(subject.cascade.calibration.items, len(images))
    size, work = Size(8, 3), WorkDirectory(tmp_path)
    stage = AdaptiveStage(subject, held_out, (0.25,), promises, size, 0, work, methods)
    judged = spied(monkeypatch, adaptive_rows, "outcome_row")
    attacks = spied(monkeypatch, Adversary, "attack")
    clean = read(subject.cascade, images)
    (without,) = stage.rows(clean, (), size, lambda *_: None)
    (row,) = replace(stage, grey=grey).rows(clean, (), size, lambda *_: None)
    assert without.grey is None
    assert row.grey is not None
    assert row.grey.fooled.items == row.fooled.items == 8
    assert (row.passed, row.static) == (without.passed, without.static), "the other rows stay"
    last = attacks[-1]
    assert last.given["aim"].name == "grey"
    (asked,) = (head for head in last.given["aim"].known.program.heads if head.detector.name == "second_opinion")
    assert asked is grey.heads["second_opinion"]
    assert last.result.best.images.numpy().tobytes() == judged[-1].given["images"].tobytes()
    assert judged[-1].given["subject"] is subject
    assert replace(stage, grey=grey).descents() - stage.descents() == 2
