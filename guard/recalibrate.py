"""Recalibration: thresholds and tails of a bundle from an unbiased sample of its traffic, without retraining.

Rule 1: programs and what was learned from attacks stay; scales, tails and the ranks of clean risks are new.
Rule 2: scale and ranks come from different items of the sample; ranks from the programs as they are served.
Rule 3: a sample that changes within itself, or of which the parent rejects far more than it promised, is refused: it
may be attacked, and its attacks would become what is normal.

How it works. Unnoticed attacks are in the sample too, and mostly among its riskiest items. A stated share t
of it is therefore left out from the top. Where the sample holds no attack, thresholds are then too low by that
share: of a promised rate r at most r + t of clean items are rejected. Where it holds a share of at most t, all at the
top, the rate lies between r and r + t.

Example. 3,000 items, 2,000 of which rank; t = 1 % leaves out the 20 riskiest. A promise of 1 % is the threshold that 19
of the other 1,980 exceed. If all 2,000 were clean, 39 exceed it: 1.95 %. If the 20 were attacks, 19 of 1,980: 1 %.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import ANSWER_CALIBRATION, CALIBRATION, MANIFEST, Bundle, write_bundle
from guard.calibration import Calibration, check_promise
from guard.cascade import Cascade
from guard.errors import BundleError, ConfigError, DataError, PromiseError
from guard.near_copies import Nearness
from guard.rescale import MIN_SCALE_ITEMS, rescaled
from guard.runtime import Runtime
from guard.sample_readings import (
    BATCH_ITEMS,
    SCALE_DIVISOR,
    SampleReadings,
    check_unchanging,
    read_again,
    read_sample,
)
from guard.session import Device
from guard.traffic_sample import TrafficSample

MAX_UNNOTICED_SHARE = 0.2
REPORTS = ("report.json", "report.html")  # of the parent: what they measured does not hold any more


@dataclass(frozen=True)
class Moved:
    """How far one promised rate has moved: what the parent takes of the sample, and what the new bundle will."""

    promised: float
    parent: float
    at_most: float  # the promised rate and the share left out
    deviation: float  # one standard deviation, for the number of items that rank

    def __str__(self) -> str:
        return (
            f"promised {percent(self.promised)}; the parent takes {percent(self.parent)} of the sample, the new bundle "
            f"{percent(self.promised)} to {percent(self.at_most)} of clean items (sampling error "
            f"{percent(self.deviation)})"
        )


@dataclass(frozen=True)
class Recalibrated:
    """A new bundle, and what its thresholds rest on."""

    bundle: Bundle
    items: int  # that rank
    left_out: int  # the riskiest of those that would rank, as unnoticed attacks
    repeats: int
    unreadable: int
    gone: int  # shards that the guard removed before they were read
    log10_evidence: float  # that the sample changes within itself, the largest of all tests
    moved: Mapping[str, Moved]  # by action


def recalibrate(
    parent: Bundle,
    folder: Path,
    out: Path,
    *,
    unnoticed_share: float,
    max_rejected_share: float,
    device: Device = "cpu",
    threads: int | None = None,
    opened: Runtime | None = None,
    other_model: bool = False,
) -> Recalibrated:
    """Write a bundle at `out` with the parent's programs, and thresholds and tails from a sample of traffic.

    `opened` is the parent's runtime where it is loaded already; with `other_model` the sample may name another model.

    Raises:
        ConfigError: a share is out of range.
        BundleError: `out` exists, or the parent calibrates a closed model's answers, which no sample holds.
        DataError: the sample is no unbiased one, or not of this model's inputs, may be attacked, or is being changed.
        PromiseError: the sample is too small for the parent's rates.
    """
    check_shares(unnoticed_share, max_rejected_share)
    if out.exists():
        raise BundleError(f"{out} exists, and a bundle is never changed; name another --out or remove it first")
    if (parent.path / ANSWER_CALIBRATION).is_file():
        raise BundleError(
            f"{parent.path} ranks a closed model's answers, and a sample of traffic holds none; train it again on "
            "newer data"
        )
    sample = TrafficSample.open(folder)
    runtime = opened or Runtime.open(parent, device=device, threads=threads)
    sample.check_input(runtime.spec)
    if not other_model:
        sample.check_model(parent.manifest.model.name)
    found = read_sample(runtime, sample)
    check_size(found, parent, unnoticed_share)
    evidence = check_unchanging(found, runtime.calibration, parent.manifest.model.output.classes)
    check_rejected(found, parent.manifest.reject_rate, unnoticed_share, max_rejected_share)
    cascade = runtime.cascade.with_calibration(rescaled_calibration(found, runtime.calibration, unnoticed_share))
    calibration, left_out = ranked(cascade, sample, found, unnoticed_share)
    moved = {}
    for action in ("reject", "flag"):
        rate = float(getattr(parent.manifest, f"{action}_rate"))
        check_promise(rate, calibration.items, name=f"{action}_rate")
        before = float((found.p_value[~found.scale] <= rate).mean())
        deviation = math.sqrt(rate * (1 - rate) / calibration.items)
        moved[action] = Moved(rate, before, rate + unnoticed_share, deviation)
    told = Recalibrated(
        parent, calibration.items, left_out, found.repeats, found.unreadable, found.gone, evidence, moved
    )
    facts = facts_of(told, sample, parent, unnoticed_share)
    return replace(told, bundle=written(parent, cascade.with_calibration(calibration), out, facts))


def check_shares(unnoticed_share: float, max_rejected_share: float) -> None:
    """Raise ConfigError for shares that are none."""
    if not 0 <= unnoticed_share <= MAX_UNNOTICED_SHARE:
        raise ConfigError(f"--unnoticed {unnoticed_share:g}; wanted a share from 0 to {MAX_UNNOTICED_SHARE:g}")
    if not 0 < max_rejected_share <= 1:
        raise ConfigError(f"--max-rejected {max_rejected_share:g}; wanted a share above 0, up to 1")


def check_size(found: SampleReadings, parent: Bundle, unnoticed_share: float) -> None:
    """Raise PromiseError where the sample is too small for the parent's rates, or for scales."""
    manifest = parent.manifest
    for_scale = int(found.scale.sum())
    ranking = found.items - for_scale
    ranking -= int(unnoticed_share * ranking)
    for name in ("reject_rate", "flag_rate"):
        rate = float(getattr(manifest, name))
        wanted = math.ceil((math.ceil(1 / rate) - 1) / (1 - unnoticed_share) * SCALE_DIVISOR / (SCALE_DIVISOR - 1))
        if ranking < math.ceil(1 / rate) - 1:
            raise PromiseError(
                f"{name} = {rate:g} cannot be promised with a sample of {found.items} items, of which {ranking} rank; "
                f"it takes about {wanted}; sample longer, or a larger share{found.not_counted}"
            )
    if for_scale < MIN_SCALE_ITEMS:
        raise PromiseError(
            f"scales and tails need {MIN_SCALE_ITEMS} items of their own, and of a sample of {found.items} there are "
            f"{for_scale}; it takes about {MIN_SCALE_ITEMS * SCALE_DIVISOR}; sample longer, or a larger share"
            f"{found.not_counted}"
        )


def check_rejected(found: SampleReadings, rate: float, unnoticed_share: float, max_rejected_share: float) -> None:
    """Raise DataError where the parent rejects more of the sample than drift explains."""
    rejected = float((found.p_value <= rate).mean())
    allowed = max_rejected_share + unnoticed_share
    error = 3 * math.sqrt(allowed * (1 - min(allowed, 1)) / found.items)
    if rejected > allowed + error:
        raise DataError(
            f"the parent rejects {percent(rejected)} of the sample, {percent(rate)} were promised and more than "
            f"{percent(allowed)} count as attacked (--max-rejected and --unnoticed); if it is calm traffic of another "
            "kind, raise --max-rejected, or better train a guard on it"
        )


def rescaled_calibration(found: SampleReadings, calibration: Calibration, unnoticed_share: float) -> Calibration:
    """The calibration with scales and tails of the sample's items that are for these, the riskiest share left out."""
    order = np.argsort(found.risk[found.scale])
    kept = order[: len(order) - int(unnoticed_share * len(order))]
    clean = found.scores[found.scale][kept]
    ends = np.cumsum(calibration.programs)
    fusions = tuple(rescaled(fusion, clean[:, :end]) for fusion, end in zip(calibration.fusions, ends, strict=True))
    return replace(calibration, fusions=fusions)


def ranked(
    cascade: Cascade, sample: TrafficSample, found: SampleReadings, unnoticed_share: float
) -> tuple[Calibration, int]:
    """The calibration with the ranks of the sample's other items, read anew, and how many of the riskiest it lacks.

    Raises DataError where the store was changed meanwhile.
    """
    wanted = set(found.images[~found.scale].tolist())
    risks, scores = [], []
    for first, shard in read_again(sample, found):
        chosen = np.asarray([first + item in wanted for item in range(len(shard))], dtype=np.bool_)
        images = shard[chosen]
        for start in range(0, len(images), BATCH_ITEMS):
            readings = cascade.read(images[start : start + BATCH_ITEMS], complete=True)
            risks.append(readings.risk)
            scores.append(readings.scores)
    risk, score = np.concatenate(risks), np.concatenate(scores)
    left_out = int(unnoticed_share * len(risk))
    kept = np.sort(np.argsort(risk, kind="stable")[: len(risk) - left_out])  # in the order of arrival
    nearness = None if found.distance is None else Nearness(np.ones(len(kept), dtype=np.bool_), found.distance)
    base = cascade.calibration
    return replace(base, clean_risks=risk[kept], clean_scores=score[kept], nearness=nearness), left_out


def facts_of(told: Recalibrated, sample: TrafficSample, parent: Bundle, unnoticed_share: float) -> dict[str, Any]:
    """What the new bundle's manifest says of its calibration."""
    return {
        "parent": parent.digest,
        "sample": {"share": sample.spec.share, "under": sample.spec.bundle, "repeats": told.repeats},
        "items": told.items,
        "unnoticed_share": unnoticed_share,
        "left_out": told.left_out,
        "log10_evidence_of_change": round(told.log10_evidence, 3),
        "rates": {
            action: {"promised": one.promised, "parent": round(one.parent, 6), "at_most": round(one.at_most, 6)}
            for action, one in told.moved.items()
        },
    }


def written(parent: Bundle, cascade: Cascade, out: Path, facts: Mapping[str, Any]) -> Bundle:
    """Write the parent's files with another calibration; a signature and reports of the parent are left behind."""
    manifest = parent.manifest
    images = parent.samples.images
    readings = cascade.read(images, complete=True)
    rates = np.asarray([manifest.reject_rate, manifest.flag_rate])
    near = np.abs(readings.p_value[:, None] - rates).min(axis=1) < 3 / (cascade.calibration.items + 1)
    keep = slice(None) if near.all() else ~near
    arrays = {
        "images": images[keep],
        "logits": readings.logits[keep],
        "scores": readings.scores[keep],
        "p_values": readings.p_value[keep],
    }
    files = {name: (parent.path / name).read_bytes() for name in shared_files(parent)}
    files |= {CALIBRATION: npz(cascade.calibration.to_arrays()), "samples.npz": npz(arrays)}
    provenance = {**manifest.provenance, "calibrated": dict(facts)}
    return write_bundle(out, replace(manifest, provenance=provenance), files)


def shared_files(parent: Bundle) -> set[str]:
    """The names of the files that the parent's manifest vouches for, but for its reports."""
    named = set(json.loads((parent.path / MANIFEST).read_bytes())["files"])
    return named - set(REPORTS)


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of an .npz with these arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def percent(share: float) -> str:
    """The words for a share, such as 1.2 %."""
    return f"{100 * share:.2g} %"


def summary(told: Recalibrated, parent: Path, say: Callable[[str], None]) -> None:
    """Say what a recalibration did, line by line."""
    say(
        f"sample    {told.items} items rank; {told.left_out} riskiest left out as unnoticed attacks; {told.repeats} "
        f"near-copies and {told.unreadable} unreadable items not counted"
    )
    if told.gone:
        say(f"gone      {told.gone} shards, which the guard that samples removed meanwhile as the oldest")
    say(f"change    none within the sample: evidence 10^{told.log10_evidence:.1f}, an alarm from 10^2")
    for action, moved in told.moved.items():
        say(f"{action:9} {moved}")
    say(f"bundle    {told.bundle.path}, calibrated from {parent}")
    say("unsigned  the new bundle bears no signature: look at the rates, then guard sign it")
