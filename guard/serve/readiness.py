"""The guard's readiness, with a reason if it is not ready: one truth for ServerReady, health, metrics and log.

Rule 1: liveness is decided elsewhere: it is the guard's own and never depends on another process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

PARTS = ("drain", "listener", "engine", "bundle", "upstream", "rest_upstream")

Listener = Callable[[str | None], None]


class Readiness:
    """The reasons of the parts that are not ready; the guard is ready when there are none.

    Some are the guard's own, others those of one model: that one is not ready, and so the guard as a whole is not.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {
            "engine": "the programs are being loaded",
            "upstream": "the model server was not reached yet",
        }
        self.of_models: dict[str, dict[str, str]] = {}  # by label; replaced, never changed: threads read it
        self.listeners: list[Listener] = []

    @property
    def because(self) -> str | None:
        """The reason why the guard is not ready; None when it is."""
        return self.first(tuple(self.of_models.values()))

    def of(self, model: str) -> str | None:
        """The reason why a model, by its label, is not ready behind this guard; None when it is."""
        return self.first((self.of_models.get(model, {}),))

    def first(self, of_models: Sequence[Mapping[str, str]]) -> str | None:
        """The first reason in the order of `PARTS`, the guard's own before those of models."""
        for part in PARTS:
            for reasons in (self.reasons, *of_models):
                if (reason := reasons.get(part)) is not None:  # one look-up: other threads read here, too
                    return reason
        return None

    def part(self, name: str) -> str | None:
        """The first reason of one part, the guard's own or a model's; None while it is ready."""
        found = (reasons.get(name) for reasons in (self.reasons, *self.of_models.values()))
        return next((reason for reason in found if reason is not None), None)

    def say(self, part: str, reason: str | None, *, model: str | None = None) -> None:
        """Set the reason of one part (None: it is ready), of the guard or of a model, and tell the listeners of it."""
        before = self.reasons if model is None else self.of_models.get(model, {})
        after = {name: known for name, known in before.items() if name != part}
        if reason is not None:
            after[part] = reason
        if before == after:
            return
        if model is None:
            self.reasons = after
        else:
            self.of_models = {**self.of_models, model: after}
        self.tell()

    def keep(self, models: Collection[str]) -> None:
        """Forget the reasons of all models but these."""
        gone = {model: reasons for model, reasons in self.of_models.items() if model not in models}
        self.of_models = {model: reasons for model, reasons in self.of_models.items() if model in models}
        if any(gone.values()):
            self.tell()

    def tell(self) -> None:
        for listener in self.listeners:
            listener(self.because)
