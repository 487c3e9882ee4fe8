"""What the checks of `guard doctor` share: the settings, the bundles that they name, and the machine.

Rule 1: each file is opened once; what cannot be opened is told by one check, and the others leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from guard.bundle import Bundle
from guard.errors import BundleError, GuardError
from guard.manifest import ModelSpec
from guard.model_config import ModelConfig
from guard.serve.doctor.given_settings import GivenSettings
from guard.serve.doctor.listeners import is_running
from guard.serve.doctor.machine import Machine
from guard.serve.open_models import served_spec


@dataclass(frozen=True)
class NamedBundle:
    """A guarded model's settings with its bundle, or with the fault for which it cannot be opened."""

    config: ModelConfig
    bundle: Bundle | None
    fault: str = ""

    @property
    def label(self) -> str:
        """The model's name in remarks; the bundle's directory where that cannot be opened."""
        if self.config.key:
            return self.config.key
        return self.config.bundle if self.bundle is None else self.bundle.manifest.model.name

    @property
    def spec(self) -> ModelSpec | None:
        """The model as its server should have it; None where settings and bundle do not tell."""
        if self.bundle is None:
            return None
        try:
            return served_spec(self.config, self.bundle)
        except GuardError:
            return None


@dataclass(frozen=True)
class Setup:
    """The settings that are checked, and the machine that they are checked on."""

    given: GivenSettings
    machine: Machine = field(default_factory=Machine)
    origin: str = ""  # of the settings, where they are not the caller's own
    timeout_s: float = 5.0  # for one answer of another process

    @cached_property
    def bundles(self) -> tuple[NamedBundle, ...]:
        """The guarded models with their bundles, every file of which was verified."""
        return tuple(map(named_bundle, self.given.config.model_configs()))

    @cached_property
    def is_running(self) -> bool:
        """Whether a guard with these settings serves here already."""
        return is_running(self.given.config, self.timeout_s)

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        """The guarded models whose bundles can be read, as their server should have them."""
        return tuple(spec for named in self.bundles if (spec := named.spec) is not None)


def named_bundle(config: ModelConfig) -> NamedBundle:
    """Open a model's bundle with all that serving reads of it at the start."""
    if not config.bundle:
        return NamedBundle(config, None)
    try:
        bundle = Bundle.open(config.bundle)
        _ = bundle.calibration, bundle.samples
    except BundleError as error:
        return NamedBundle(config, None, str(error))
    except OSError as error:
        reason = f"{error.filename or config.bundle} cannot be read: {error.strerror}"
        return NamedBundle(config, None, f"{reason}; let the guard's user read the bundle")
    return NamedBundle(config, bundle)
