"""Guards fitted without one family of attacks: what is caught of a kind of attack that training never saw.

Rule 1: everything that saw attacked items is made anew without the family: heads, fusion, bands, ranks, and the choice
of the share that is kept for evidence that needs no attacks.
Rule 2: the path is the served bundle's own, down to the runtime.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from guard.bundle import Bundle
from guard.errors import BundleError
from guard.offline.evaluation.left_out_guard import LeftOut
from guard.offline.evidence.cache import EvidenceCache
from guard.offline.findings.attack_names import labels_of
from guard.offline.job.job import Job
from guard.offline.job.recipe import Recipe
from guard.offline.training.build import Prepared, compile_heads, fit, parities
from guard.offline.training.calibrator import Calibrator
from guard.offline.training.candidates import ChosenDetectors, with_chosen
from guard.offline.training.families import MIN_LEARNED_ITEMS, learned_without, leaving
from guard.offline.training.fit_heads import settled
from guard.offline.training.left_out_scores import left_out_scores
from guard.offline.work.code import code_digest
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_json, write_bytes, write_json
from guard.offline.work.parallel import OWN_THREADS
from guard.offline.work.tasks import TaskCallbacks, Tasks, Watch
from guard.runtime import Runtime

TOO_FEW = "learned_items"  # in what is kept of a family that cannot be left out: how many items the others have


def families(recipe: Recipe) -> tuple[str, ...]:
    """Return the families that can be left out: none where there is but one, or nothing were left to learn from."""
    found = tuple(dict.fromkeys(str(attack.family) for attack in recipe.attacks))
    return found if len(found) > 1 else ()


def unmade(recipe: Recipe, work: WorkDirectory, served: Bundle) -> tuple[str, ...]:
    """Return the families without which no guard lies in the work directory yet, and could."""
    identity = served.identity
    return tuple(
        family
        for family in families(recipe)
        if reopened(work, family, identity) is None and too_few(work, family, identity) is None
    )


def stays(recipe: Recipe, work: WorkDirectory, served: Bundle) -> tuple[str, ...]:
    """Say which families cannot be left out, since hardly anything were left to learn from."""
    found = {family: too_few(work, family, served.identity) for family in families(recipe)}
    return tuple(
        f"{family} is not left out: the other families fool the model on {count} items of a split that a guard is "
        f"fitted on, and it takes {MIN_LEARNED_ITEMS}"
        for family, count in found.items()
        if count is not None
    )


def refit_all(
    job: Job, prepared: Callable[[], Prepared], served: Bundle, note: Callable[[str], None]
) -> tuple[LeftOut, ...]:
    """Return one guard a family that can be left out, reopened from the work directory where it is there.

    Where one is not, `prepared` is asked for. `stays` says afterwards which cannot.

    Raises: as fitting, compiling and calibrating do.
    """
    labels = labels_of(job.recipe.attacks, served.manifest.model.input.grid)
    missing = unmade(job.recipe, job.work, served)
    if missing:
        note("model, data and crafted items")
        make_missing(job, prepared(), missing, served, note)
    found = []
    for family in families(job.recipe):
        if too_few(job.work, family, served.identity) is not None:
            continue
        bundle = Bundle.open(job.work.without(family))
        fitted_on = tuple(label for label, attack in labels.items() if attack.family != family)
        chosen = job.cost is None or bool(bundle.manifest.provenance.get("choice"))
        found.append(
            LeftOut(family, fitted_on, Runtime.open(bundle).cascade, bundle.identity, served_detectors=not chosen)
        )
    return tuple(found)


def make_missing(
    job: Job, prepared: Prepared, missing: Sequence[str], served: Bundle, note: Callable[[str], None]
) -> None:
    """Fit a guard without each of these families, and keep it as soon as it is there.

    Where the others' items are too few for any head to learn from, that is kept in its place.
    Data that do not fit into memory are not sent anywhere: these guards are fitted in this process.
    """
    counts = {family: learned_without(prepared, family) for family in missing}
    for family, count in counts.items():
        if count < MIN_LEARNED_ITEMS:
            write_json(job.work.made_for(family), {**made_for(served.identity, None), TOO_FEW: count})
    missing = [family for family, count in counts.items() if count >= MIN_LEARNED_ITEMS]
    if not missing:
        return
    refits = Refits(job, prepared, served, EvidenceCache(prepared.classifier))

    def keep(number: int, files: dict[str, bytes]) -> None:
        bundle = keep_bundle(job.work.without(missing[number]), files)
        write_json(job.work.made_for(missing[number]), made_for(served.identity, bundle))

    executor = OWN_THREADS if prepared.data.is_on_disk else job.runs_on
    tasks = Tasks(refitted, refits, missing, threads=torch.get_num_threads(), alone=True)
    executor.run(tasks, TaskCallbacks(kept=keep, noted=note))


@dataclass(frozen=True, eq=False)
class Refits:
    """What guards without a family are fitted from, one as the other."""

    job: Job
    prepared: Prepared
    served: Bundle
    remembered: EvidenceCache


def refitted(refits: Refits, family: str, watch: Watch) -> dict[str, bytes]:
    """Fit a guard without one family, and return the files of its bundle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        refit(refits.job, refits.prepared, family, refits.served, refits.remembered, watch.note, path)
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def keep_bundle(path: Path, files: Mapping[str, bytes]) -> Bundle:
    """Write the files of a bundle to a path, in the place of what is there, and open it."""
    if path.exists():
        shutil.rmtree(path)
    for name, content in files.items():
        write_bytes(path / name, content)
    return Bundle.open(path)


def refit(
    job: Job,
    prepared: Prepared,
    family: str,
    served: Bundle,
    remembered: EvidenceCache,
    note: Callable[[str], None],
    path: Path | None = None,
) -> Bundle:
    """Fit, compile and calibrate as for the served bundle, on the crafted sets of all other families.

    Without a path, the bundle takes its place in the work directory.
    """
    if path is None:
        path = job.work.without(family)
        if path.exists():
            shutil.rmtree(path)
    kept = replace(prepared, crafted=tuple(found for found in prepared.crafted if found.family != family))
    job, chosen = chosen_without(job, kept, served, remembered, lambda name: note(f"{family}: {name}"))
    programs = kept.programs(job)
    heads = fit(job, kept, programs, lambda name: note(f"{family}: {name}"), remembered)
    if chosen is None:
        left_out = left_out_scores(job, kept, programs, remembered, lambda text: note(f"{family}: {text}"))
    else:
        left_out = list(chosen.left_out)
    programs = settled(programs, heads)
    note(f"{family}: compile")
    graphs = compile_heads(job, kept, programs, heads, repairs=False)
    note(f"{family}: calibrate")
    calibrator = Calibrator(
        job, kept.classifier, programs, graphs.files, kept.data, None if chosen is None else chosen.choice
    )
    calibrated = calibrator.calibrate(kept.crafted, left_out)
    parities(graphs, calibrated.cascade)
    return calibrator.bundle(path, calibrated, {}, {})


def chosen_without(
    job: Job, kept: Prepared, served: Bundle, remembered: EvidenceCache, note: Callable[[str], None]
) -> tuple[Job, ChosenDetectors | None]:
    """Return the job with detectors chosen on the families that are kept, where it has a limit of forwards.

    Where but one family is kept, or two can't be left out of what is, there is nothing to choose by, and the served
    guard's detectors are taken.
    """
    if job.cost is None or leaving(kept):
        return with_chosen(job, kept, remembered, note)
    return replace(job, recipe=job.recipe.having(served.manifest.recipe["detector"])), None


def made_for(identity: str, bundle: Bundle | None) -> dict[str, str | int | None]:
    """Return what a guard without a family is kept for: the served one, its own content, and the code that made it."""
    digest = None if bundle is None else bundle.digest
    return {"of": identity, "bundle": digest, "code": code_digest(__name__)}


def too_few(work: WorkDirectory, family: str, identity: str) -> int | None:
    """Return how few items the other families were found to have; None where they suffice, or were not counted."""
    kept = read_json(work.made_for(family)) if work.made_for(family).exists() else None
    if not isinstance(kept, dict) or kept != {**made_for(identity, None), TOO_FEW: kept.get(TOO_FEW)}:
        return None
    return int(kept[TOO_FEW])


def reopened(work: WorkDirectory, family: str, identity: str) -> Bundle | None:
    """Reopen a guard without a family; None where no whole one was made for this served bundle, by this code."""
    try:
        bundle = Bundle.open(work.without(family))
    except (OSError, BundleError):
        return None
    return bundle if read_json(work.made_for(family)) == made_for(identity, bundle) else None
