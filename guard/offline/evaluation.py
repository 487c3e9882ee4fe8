"""`guard evaluate`: a bundle, its work directory and fresh data -> one JSON file and one page."""

from __future__ import annotations

from pathlib import Path

import torch

from guard.bundle import Bundle
from guard.offline.fit import BATCH
from guard.offline.measure import Effort, measure
from guard.offline.progress import Stages
from guard.offline.reopen import Work
from guard.offline.report import to_html, to_json
from guard.offline.threads import choose_threads

FULL = (300, 50, 100)  # items an attack is tried on; items and steps of the adaptive attack
QUICK = (100, 20, 30)


def evaluate_bundle(bundle: Bundle, data: Path, out: Path, *, quick: bool, seed: int, stages: Stages) -> Path:
    """Write `report.json` and `report.html` into `out`; the page's path.

    Raises:
        BundleError, DataError, ModelError: before anything is written.
    """
    work = Work.beside(bundle)
    with stages.stage("open bundle and data") as progress:
        held_out, aside = work.held_out(bundle, data)
        subject = work.subject(bundle)
        choose_threads(subject.classifier.graph, torch.from_numpy(held_out.images[:BATCH]))
        if aside:
            progress.say(f"put aside {aside} items that the bundle was fitted or calibrated on")
    effort = Effort(*(QUICK if quick else FULL), seed, work.path / "crafted")
    with stages.stage("measure on held-out data") as progress:
        evaluation = measure(subject, held_out, work.recipe, effort, progress)
    pages = {"report.json": to_json(evaluation), "report.html": to_html(evaluation)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        partial = out / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(out / name)
    return out / "report.html"
