"""The riskiest inputs of an audit log, explained anew by the bundles that judged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.bundle import Bundle
from guard.explanation import Explanation, explained
from guard.offline.audit.summary import AuditSummary, KeptInput
from guard.runtime import Runtime


@dataclass(frozen=True, eq=False)
class ExplainedInput:
    """A kept input, with its explanation where a bundle was given that judged it."""

    kept: KeptInput
    found: Explanation | None = None


def explain_riskiest(summary: AuditSummary, bundles: Sequence[Path]) -> list[ExplainedInput]:
    """Explain the riskiest inputs that a log kept, the riskiest first.

    Raises:
        BundleError: one of the bundles cannot be opened.
    """
    runtimes = [Runtime.open(Bundle.open(bundle), threads=1, only_repairs=()) for bundle in bundles]
    by_digest = {runtime.bundle.digest: runtime for runtime in runtimes}
    return [ExplainedInput(kept, explanation_of(kept, by_digest)) for kept in summary.riskiest]


def explanation_of(kept: KeptInput, by_digest: Mapping[str, Runtime]) -> Explanation | None:
    """The explanation of a kept input; None where its bundle is not among those given, or takes no such input.

    Lines of before name no bundle: then the only one that was given counts, if it takes such inputs.
    """
    only = next(iter(by_digest.values())) if len(by_digest) == 1 else None
    runtime = only if kept.bundle is None else by_digest.get(kept.bundle)
    if runtime is None or kept.image.shape != runtime.spec.wire_shape or kept.image.dtype != runtime.spec.dtype:
        return None
    return explained(runtime, kept.image[None])
