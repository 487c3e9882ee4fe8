"""Bundles and reports logged to an MLflow tracking server: parameters, figures, files.

Rule 1: what is logged is what manifest and report hold; nothing is measured here, and no file is changed.
Rule 2: a training that ends has its bundle on disk before a server is asked, and whatever the server does it stays.
Rule 3: MLflow's client talks to that server alone: its own telemetry is off unless the user turned it on.

Credentials and the experiment's name come from MLflow's own variables, which its client reads.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guard.bundle import MANIFEST, SIGNATURE, Bundle
from guard.errors import ConfigError, DataError, NotReadyError

EXPERIMENT = "guard"  # unless MLFLOW_EXPERIMENT_NAME says another
SCHEMES = ("http", "https", "file", "sqlite", "databricks", "")  # the last: a folder's path
# The client's own settings, where the user has none: a server that hangs costs minutes, not hours.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
HEALTH_TIMEOUT_S = 5.0
MAX_TEXT_CHARACTERS, MAX_KEY_CHARACTERS = 5000, 250  # of a parameter, and of a metric's name
BATCH_ENTRIES = 100  # which every server takes at once
REPORT, REPORT_PAGE = "report.json", "report.html"
RATES = ("0.001", "0.01", "0.05")


@dataclass(frozen=True)
class Tracked:
    """A run as it is to be logged."""

    name: str
    parameters: Mapping[str, str]
    figures: Mapping[str, float]
    tags: Mapping[str, str]
    files: Sequence[Path]
    folder: str  # of the run's artefacts, that the files lie in
    began_s: float | None = None  # since 1970; None: when it is logged


def check_tracking(uri: str, say: Callable[[str], None]) -> None:
    """Look at an address before a long training, and say where the server does not answer yet.

    Raises:
        ConfigError: it is no address of a tracking server.
        ModuleNotFoundError: MLflow's client is not installed.
    """
    with_defaults()
    import mlflow  # noqa: F401

    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES or not uri.strip():
        raise ConfigError(f"--mlflow {redacted(uri)!r} is no tracking server; wanted http://HOST:PORT or https://HOST")
    if parts.scheme in ("http", "https"):
        try:
            plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # which needs no password
            urllib.request.urlopen(f"{plain.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S).close()
        except urllib.error.HTTPError:
            return  # it answers, and may want credentials
        except (OSError, ValueError) as error:
            say(f"{redacted(uri)} does not answer ({cause_of(error)}); it is tried again at the end")


def track(uri: str, run: Tracked) -> str:
    """Log a run, and return its id.

    Raises:
        NotReadyError: the server does not answer, or refuses; what it had got by then is marked as failed.
    """
    with_defaults()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        began = int((run.began_s or time.time()) * 1000)
        found = client.create_run(
            experiment_of(client, MlflowException), start_time=began, run_name=run.name, tags=dict(run.tags)
        )
        run_id = str(found.info.run_id)
        try:
            send(client, run_id, run)
        except BaseException:
            with suppress(Exception):  # what failed first is told
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:  # of the client, or of the library by which it reaches the artefact store
        raise NotReadyError(f"{redacted(uri)} took no run ({cause_of(error)}); {cure(error)}") from error
    return run_id


def with_defaults() -> None:
    """Set the client's variables that the user has not set; it reads them at its import."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def cure(error: Exception) -> str:
    """What to do about a run that was not taken."""
    if isinstance(error, ModuleNotFoundError):
        return f"its artefact store is reached by the package {error.name}: install that beside mlflow"
    return "look at the server, its log, its artefact store and your credentials for both"


def experiment_of(client: Any, failure: type[Exception]) -> str:
    """Return the id of the experiment that runs are logged to, made where there is none."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except failure:  # another run has just made it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def send(client: Any, run_id: str, run: Tracked) -> None:
    """Send parameters, figures and files of a run that was begun."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in run.figures.items()]
    parameters = [Param(key, value[:MAX_TEXT_CHARACTERS]) for key, value in run.parameters.items()]
    for start in range(0, len(metrics), BATCH_ENTRIES):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH_ENTRIES])
    for start in range(0, len(parameters), BATCH_ENTRIES):
        client.log_batch(run_id, params=parameters[start : start + BATCH_ENTRIES])
    for file in run.files:
        client.log_artifact(run_id, str(file), run.folder)


def bundle_run(bundle: Bundle, *, began_s: float | None = None) -> Tracked:
    """Return the run of a bundle's training: its manifest's facts, its report's figures, and all its files."""
    manifest = bundle.manifest
    report = bundle.path / REPORT
    parent = manifest.provenance.get("calibrated")
    facts = {**bundle_facts(bundle), **({"guard.parent": str(parent["parent"])} if isinstance(parent, Mapping) else {})}
    names = [MANIFEST, *sorted(bundle.files), *([SIGNATURE] if (bundle.path / SIGNATURE).is_file() else [])]
    return Tracked(
        name=f"{manifest.model.name} {bundle.identity[:8]}",
        parameters=parameters_of(bundle),
        figures=figures_in(report, read_report(report)) if report.is_file() else {},
        tags={**facts, "guard.run": "training"},
        files=[bundle.path / name for name in names],
        folder="bundle",
        began_s=began_s,
    )


def report_run(bundle: Bundle, folder: Path, settings: Mapping[str, str], *, began_s: float | None = None) -> Tracked:
    """Return the run of a bundle's evaluation: how it was asked for, its figures, and the report.

    Raises:
        DataError: a file is missing, or is no report of this bundle.
    """
    file, page = folder / REPORT, folder / REPORT_PAGE
    report = read_report(file)
    if report.get("guard") != bundle.identity:
        found = report.get("guard")
        known = f"the guard {found[:16]}" if isinstance(found, str) else "no guard"
        raise DataError(
            f"{file} reports on {known}, and {bundle.path} is {bundle.identity[:16]}; "
            f"wanted the report of guard evaluate {bundle.path}"
        )
    if not page.is_file():
        raise DataError(f"{page} is not there; wanted both files that guard evaluate wrote")
    return Tracked(
        name=f"{bundle.manifest.model.name} {bundle.identity[:8]} evaluated",
        parameters={**parameters_of(bundle), **{f"evaluate.{name}": text for name, text in settings.items()}},
        figures=figures_in(file, report),
        tags={**bundle_facts(bundle), "guard.run": "evaluation"},
        files=[file, page],
        folder="report",
        began_s=began_s,
    )


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    """The tags by which the runs of one bundle are found."""
    return {"guard.bundle.digest": bundle.digest, "guard.bundle.identity": bundle.identity}


def parameters_of(bundle: Bundle) -> dict[str, str]:
    """What a bundle was made with, as flat text."""
    manifest = bundle.manifest
    found = {
        "recipe": str(manifest.recipe.get("name", "")),
        "seed": str(manifest.seed),
        "reject_rate": f"{manifest.reject_rate:g}",
        "flag_rate": f"{manifest.flag_rate:g}",
        "model.name": manifest.model.name,
        "model.version": manifest.model.version,
        "model.fingerprint": manifest.model.fingerprint,
        "detectors": ", ".join(one.expression for one in manifest.detectors),
        "attacks": json.dumps(manifest.recipe.get("attack", [])),
        **{f"made_by.{name}": str(version) for name, version in manifest.made_by.items()},
    }
    sources = manifest.provenance.get("sources")
    for name, facts in (sources if isinstance(sources, Mapping) else {}).items():
        found |= {f"source.{name}.{key}": str(value) for key, value in facts.items()}
    return {name: text for name, text in found.items() if text}


def read_report(file: Path) -> Mapping[str, Any]:
    """Read a report. Raises DataError."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); wanted the report.json of guard train or evaluate"
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"{file} is no report; wanted the report.json of guard train or evaluate")
    return found


def figures_in(file: Path, report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report that was read from a file. Raises DataError where it is of another form."""
    try:
        return figures_of(report)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{file} has another form ({type(error).__name__}: {error}); "
            "wanted the report.json of guard train or evaluate"
        ) from error


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report under names that MLflow takes, such as `attack/pgd Linf 1 to 2_16/caught at 0.05`."""
    found: dict[str, float] = {}
    for parts, value in all_figures(report):
        key = "/".join(map(plain, parts))[:MAX_KEY_CHARACTERS]
        number, unused = 2, key
        while unused in found:  # labels of rows may be the same
            number, unused = number + 1, f"{key}-{number}"
        found[unused] = value
    return found


def all_figures(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Figures of a report, each with the parts of its name; what was not measured is left out."""
    yield from rate(("accuracy",), report.get("accuracy"))
    for row in report.get("clean", ()):
        if not row.get("part"):
            for name in ("rejected", "flagged"):
                yield from rate(("clean", row["name"], name), row.get(name))
            yield from by_rate(("clean", row["name"], "alarms at"), row.get("alarms"))
    for row in report.get("attacks", ()):
        where = ("attack", row["label"])
        for name in ("success", "rejected", "flagged", "robust_accuracy"):
            yield from rate((*where, name), row.get(name))
        for guard, named in (("served", ""), ("left_out", "left out ")):
            seen = row.get(guard) or {}
            yield from rate((*where, f"{named}auroc"), seen.get("auroc"))
            yield from by_rate((*where, f"{named}caught at"), seen.get("caught"))
    for row in report.get("adaptive", ()):
        where = ("adaptive", row["label"])
        for name in ("fooled", "passed_reject", "passed_flag"):
            yield from rate((*where, name), row.get(name))
        yield from rate((*where, "auroc"), (row.get("detection") or {}).get("auroc"))


def by_rate(where: tuple[str, ...], found: Mapping[str, Any] | None) -> Iterator[tuple[tuple[str, ...], float]]:
    """The figures at each promised rate."""
    for promised in RATES:
        yield from rate((*where[:-1], f"{where[-1]} {promised}"), (found or {}).get(promised))


def rate(where: tuple[str, ...], found: Mapping[str, Any] | None) -> Iterator[tuple[tuple[str, ...], float]]:
    """The value of a rate or an area, where it was measured."""
    if found is not None and found.get("value") is not None:
        yield where, float(found["value"])


def plain(text: str) -> str:
    """A part of a metric's name, in the characters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_. -]", "_", text.replace("∞", "inf")).strip(" .") or "_"


def redacted(uri: str) -> str:
    """An address without the password that may stand in it."""
    parts = urlsplit(uri)
    return uri if parts.username is None else uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "***@")


def cause_of(error: BaseException) -> str:
    """The innermost cause of a failure, in a few words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__
