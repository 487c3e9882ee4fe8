"""What the metrics say of the models at work: their bundles, and what these promise; it follows a reload."""

from __future__ import annotations

import time

from guard.answer_evidence import ANSWER
from guard.serve.guarded_model import GuardedModel
from guard.serve.metrics import Metrics
from guard.serve.models import ModelTable

DIGEST_CHARACTERS = 16


def show_models(metrics: Metrics, before: ModelTable | None, after: ModelTable) -> None:
    """Show the models of a table, and no longer what was true of those before it. Counters stay as they are."""
    for model in before.models if before is not None else ():
        metrics.bundle_info.remove(*bundle_labels(model))
        if model.label not in after.labels:
            for action in ("reject", "flag"):
                metrics.promised_rate.remove(model.label, action)
            metrics.measured_disagreement.remove(model.label)
            metrics.disagreement.remove(model.label)
            for gauge in (metrics.inspections.budget_s, metrics.inspections.calibration_items):
                gauge.remove(model.label)
            metrics.inspections.loaded_s.remove(model.label)
    for loaded in after.loaded:
        if before is None or loaded not in before.loaded:
            loaded.metrics.show()
    at_work = {} if before is None else {model.label: model.bundle.digest for model in before.models}
    metrics.models = frozenset((*after.labels, *after.allowed))
    for model in after.models:
        answers = (ANSWER,) if model.inspector.answers is not None else ()
        calibration = model.bundle.calibration
        metrics.guards(model.label, (*calibration.detectors, *answers))
        metrics.inspections.budget_s.labels(model.label).set(model.config.inspect_timeout_s)
        metrics.inspections.calibration_items.labels(model.label).set(calibration.items)
        if model.bundle.digest != at_work.get(model.label):
            metrics.inspections.loaded_s.labels(model.label).set(time.time())
        metrics.bundle_info.labels(*bundle_labels(model)).set(1)
        metrics.promised_rate.labels(model.label, "reject").set(model.policy.reject_rate)
        metrics.promised_rate.labels(model.label, "flag").set(model.policy.flag_rate)
        metrics.measured_disagreement.labels(model.label).set(model.bundle.manifest.measured_disagreement)


def bundle_labels(model: GuardedModel) -> tuple[str, str, str, str]:
    """The labels of `guard_bundle_info`: digest, model, version, fingerprint."""
    digest, fingerprint = model.bundle.digest, model.spec.fingerprint
    return digest[:DIGEST_CHARACTERS], model.label, model.spec.version, fingerprint[:DIGEST_CHARACTERS]
