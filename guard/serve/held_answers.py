"""What a guard needs that forwards before its verdict: no way around held answers, and a calibration if they count."""

from __future__ import annotations

from collections.abc import Sequence

from guard.answer_evidence import AnswerCalibration, evidence_of
from guard.bundle import Bundle
from guard.errors import BundleError, ConfigError
from guard.model_config import ModelConfig

STREAM = "ModelStreamInfer"


def held_answers(config: ModelConfig, bundle: Bundle, *, allow_methods: Sequence[str]) -> AnswerCalibration | None:
    """The calibration by which answers count in verdicts; None where they do not count.

    Raises:
        ConfigError: repair, streams or the shadow queue are asked for as well.
        BundleError: the bundle has none.
    """
    if config.forward == "after":
        return None
    if config.mode == "shadow" and config.shadow == "queue":
        raise ConfigError(
            f"forward = {config.forward!r} excludes shadow = 'queue': what is inspected after its answer holds nothing "
            "back; leave one of them out"
        )
    if config.repair is not None:
        raise ConfigError(
            f"forward = {config.forward!r} excludes repair = {config.repair!r}: the model has seen the input when "
            "it could be cleaned; leave one of them out"
        )
    streams = [name for name in allow_methods if name.rpartition("/")[2] == STREAM]
    if streams:
        raise ConfigError(
            f"forward = {config.forward!r} excludes allow_methods = {streams[0]!r}: a stream's answers are not "
            "held; leave one of them out"
        )
    if config.forward == "together":
        return None
    if (found := evidence_of(bundle)) is None:
        raise BundleError(
            f"forward = 'before' compares a closed model's answers with its student's, and {bundle.path} has no "
            "calibration of answers; train it with --answers, or leave forward = 'after'"
        )
    return found
