"""Reopens what `guard train` kept beside a bundle, so that it can be measured and attacked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from guard.arrays import read_examples
from guard.bundle import Bundle
from guard.columns import ColumnChoice
from guard.data_file import Reading
from guard.errors import BundleError, DataError, ModelError
from guard.offline.closed.study import reopen
from guard.offline.data.dataset import Dataset, dataset_of
from guard.offline.data.splits import Split
from guard.offline.job.class_checks import check_held_out
from guard.offline.job.feature_file import restored
from guard.offline.job.job import Job
from guard.offline.job.recipe import Recipe, parse
from guard.offline.model.answering import Study
from guard.offline.model.classifier import Classifier
from guard.offline.model.open_model import Source, open_model
from guard.offline.programs.opened_guard import OpenedGuard, graphs_of, rates_of
from guard.offline.second.kept import kept_lessons, kept_networks
from guard.offline.training.fit_heads import load_heads, settled
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_json, write_json
from guard.runtime import Runtime

NOT_KEPT = {"recipe", "out", "executor"}  # of a job's settings: kept in another form, or of one run alone


@dataclass(frozen=True)
class PutAside:
    """Numbers of items that are no news to a bundle, and so are no test of it."""

    fitted: int  # or calibrated on
    learned: int = 0  # by a second network alone, or it was judged on them while it learned

    def __str__(self) -> str:
        counts = {
            "that the bundle was fitted or calibrated on": self.fitted,
            "that a second network learned from": self.learned,
        }
        return "put aside " + " and ".join(f"{count} items {what}" for what, count in counts.items() if count)

    def __bool__(self) -> bool:
        return self.fitted > 0 or self.learned > 0


@dataclass(frozen=True)
class Work:
    """The work directory beside a bundle, BUNDLE.work, which holds the guard's torch side."""

    directory: WorkDirectory
    job: dict[str, Any]
    recipe: Recipe
    splits: dict[str, str]  # content hash -> split

    @staticmethod
    def beside(bundle: Bundle, path: Path | None = None) -> Work:
        """Open the work directory. Raises BundleError when it is gone: the adaptive attack cannot run without it."""
        work = WorkDirectory.beside(bundle.path) if path is None else WorkDirectory(path)
        if work.path.exists():
            work.check()
        job, splits = read_json(work.job), read_json(work.splits)
        try:
            recipe = parse(job["recipe"]["raw"], str(job["recipe"]["name"]))
            asking = recipe.asking(kept_networks(work, bundle.manifest.model))
            asking = replace(asking, cascade=len(bundle.manifest.programs) > 1)  # as it is, whatever is usual now
            splits = {str(key): str(value) for key, value in splits.items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise BundleError(
                f"{work.path} holds no job and splits of a training; `guard train` keeps them beside the bundle, "
                "and the adaptive attack needs them"
            ) from error
        return Work(work, job, asking, splits)

    def subject(self, bundle: Bundle) -> OpenedGuard:
        """Open model, heads and runtime. Raises ModelError when the model is not the one the bundle was made for."""
        spec = bundle.manifest.model
        source = Source(
            model=self.job["model"],
            item_shape=spec.input.shape,
            low=spec.input.low,
            high=spec.input.high,
            grid=spec.input.grid,
            features=spec.input.features,
            input_name=spec.input.name,
            output_name=self.job.get("output_name") or spec.output.name,  # which also says the way to it
            output=spec.output.kind,
            serves=spec.name + (f":{spec.version}" if spec.version else ""),
            labels=spec.output.labels,
            layout=spec.input.layout,
            input_type=spec.input.datatype if self.job.get("input_type") else None,
        )
        if self.job.get("answers"):
            study = study_of(bundle)
            classifier = reopen(self.job_of(bundle).study(keep=True), source, spec, study)
        else:
            classifier = open_model(source)
        if classifier.spec.fingerprint != spec.fingerprint:
            raise ModelError(
                f"{self.job.get('answers') or self.job['model']} is no longer the model that the bundle was made for "
                f"(fingerprint {classifier.spec.fingerprint[:12]}…, the bundle says {spec.fingerprint[:12]}…), or this "
                "version of the guard reads it otherwise than the one that made the bundle; train a new bundle"
            )
        served = replace(self, recipe=self.recipe.having(bundle.manifest.recipe["detector"]))  # chosen, perhaps
        programs = served.fitting(classifier).recipe.programs([tap.name for tap in classifier.taps])
        heads = load_heads([d for detectors in programs.values() for d in detectors], self.directory)
        cascade = Runtime.open(bundle).cascade
        detectors, guard = settled(programs, heads), bundle.identity
        return OpenedGuard(classifier, detectors, heads, cascade, rates_of(bundle), guard, graphs_of(bundle))

    def fitting(self, classifier: Classifier) -> Work:
        """Return the work with the recipe's parts that apply to the model's kind of input."""
        taps = [tap.name for tap in classifier.taps]
        return replace(self, recipe=self.recipe.fitting(classifier.kind, taps, classifier))

    def job_of(self, bundle: Bundle) -> Job:
        """Return the settings that `guard train` was called with. Raises BundleError."""
        known = {field.name for field in fields(Job)} - NOT_KEPT
        settings = {key: value for key, value in self.job.items() if key in known}
        for key in ("data", "test", "served", "second_data"):
            settings[key] = settings.get(key) and Path(settings[key])
        for key in ("low", "high", "labels", "drop_columns", "second"):
            settings[key] = tuple(settings.get(key, ()))
        settings["features"] = restored(settings.get("features", ()))
        bounds = settings.get("second_bounds", ())
        settings["second_bounds"] = tuple((tuple(low), tuple(high)) for low, high in bounds)
        try:
            return Job(out=bundle.path, recipe=self.recipe, **settings)
        except TypeError as error:
            raise BundleError(f"{self.directory.job} lacks a setting ({error}); train the bundle again") from error

    def same_splits(self, splits: Mapping[str, Split]) -> None:
        """Check that the training data is what the bundle was made from. Raises DataError where it is not."""
        if {key: str(value) for key, value in splits.items()} != self.splits:
            raise DataError(
                f"{self.job['data']} no longer holds what the bundle was trained on, so no family can be left out of "
                "its training; bring the data back, or use --quick"
            )

    def held_out(
        self,
        bundle: Bundle,
        data: Path,
        *,
        layout: str | None = None,
        choice: ColumnChoice | None = None,
        progress: Reading | None = None,
    ) -> tuple[Dataset, PutAside]:
        """Return the items of a file that nothing was fitted or calibrated on, and how many had to be put aside.

        They are in the order of their hashes, so that the first of them are of all classes, however a file is sorted.
        Class folders are found by the bundle's names of classes, and a table's columns as they were in training unless
        a choice says otherwise.

        Raises:
            DataError: none is left, or a label or folder is no class of the model.
        """
        spec, output = bundle.manifest.model.input, bundle.manifest.model.output
        job = self.job_of(bundle)
        examples = read_examples(
            data,
            layout=layout,
            classes=output.labels,
            choice=replace(job.choice if choice is None else choice, features=spec.features),
            progress=progress,
            stream=job.streams,
        )
        check_held_out(examples, output)
        found = dataset_of(examples, spec, kept=self.directory.reading, progress=progress)
        test = np.asarray(
            [self.splits.get(value, Split.TEST.value) == Split.TEST.value for value in found.hashes.tolist()]
        )
        fresh = test & ~np.isin(found.hashes, kept_lessons(self.directory))
        if not fresh.any():
            raise DataError(
                f"{data}: every item was fitted or calibrated on, or a second network learned from it; evaluation "
                "needs items that this bundle has not seen"
            )
        order = np.argsort(found.hashes, kind="stable")
        return found.take(order[fresh[order]]), PutAside(int((~test).sum()), int((test & ~fresh).sum()))


def study_of(bundle: Bundle) -> Study:
    """Return the study that a bundle's student was made in. Raises BundleError where its manifest has none."""
    kept = bundle.manifest.provenance.get("student", {})
    try:
        return Study(**{field.name: kept[field.name] for field in fields(Study)})
    except KeyError as error:
        raise BundleError(
            f"the manifest of {bundle.path} says nothing of a student ({error}); train it again"
        ) from error


def write_work(job: Job, data: Dataset) -> None:
    """Write the split by content hash, and what the model and recipe were, for `guard evaluate`."""
    job.work.begin()
    write_json(job.work.splits, dict(sorted(data.splits.items())), indent=0)
    settings = {key: value for key, value in asdict(replace(job, executor=None)).items() if key not in NOT_KEPT}
    if Path(job.model).is_file():
        settings["model"] = str(Path(job.model).resolve())  # found again from wherever `guard evaluate` is called
    if job.answers is not None and Path(job.answers).is_file():
        settings["answers"] = str(Path(job.answers).resolve())
    paths = {"test": job.test, "served": job.served, "second_data": job.second_data}
    settings |= {name: path and path.resolve() for name, path in paths.items()}
    settings["data"] = job.data.resolve()
    settings |= {"recipe": {"name": job.recipe.name, "raw": job.recipe.raw}}
    write_json(job.work.job, settings, indent=2)
