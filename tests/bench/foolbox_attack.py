"""An attack of foolbox as an attack of ours, so that it is crafted, snapped to the grid and verified as ours are.

Rule 1: what foolbox draws is drawn from the generator given, and no other randomness moves.
Rule 2: an item for which foolbox found nothing (a black picture, or no number) comes back clean.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from guard.errors import ConfigError
from guard.offline.attacks.adapter import Asked, Drawing
from guard.offline.attacks.adapter import foolbox as imported
from guard.offline.attacks.attack import Family, Traits, more_than_zero
from guard.offline.attacks.model import Model
from guard.offline.attacks.norm_ball import per_item
from guard.offline.data.norms import Measure
from tests.side import reach

PREFIX = "foolbox."  # of an attack's name in a file of cells
NORMS: Mapping[str, Measure] = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0"}  # by how a class's name begins
OTHERS: Mapping[str, Measure] = {  # names that begin otherwise
    "PGD": "linf",
    "FGSM": "linf",
    "MIFGSM": "linf",
    "AdamPGD": "linf",
    "FGM": "l2",
    "DDNAttack": "l2",
    "NewtonFoolAttack": "l2",
    "EADAttack": "l1",
    "SparseL1DescentAttack": "l1",
}


@cache
def foolbox() -> Any:
    """foolbox, from the shelf `attacks`."""
    reach("attacks")
    return imported()


@dataclass(frozen=True, repr=False)
class FoolboxAttack:
    """A class of `foolbox.attacks` with its settings; it needs a budget where foolbox wants one, and takes none else.

    foolbox returns the last point of a descent, where our own return the best.
    """

    traits: ClassVar[Traits] = Traits()

    method: str
    budget: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        kind = getattr(foolbox().attacks, self.method, None)
        if not inspect.isclass(kind):
            raise ConfigError(f"attack {self.name!r}: foolbox has no attack {self.method!r}")
        if self.bounded != (self.budget is not None):
            wanted = "a budget is wanted" if self.bounded else "it looks for the smallest, and takes no budget"
            raise ConfigError(f"attack {self.name!r}: budget = {self.budget!r}; {wanted}")
        more_than_zero(self, "budget")
        self.made()

    @staticmethod
    def of(block: Mapping[str, Any]) -> FoolboxAttack:
        """Build an attack from an [[attack]] block whose name begins with `foolbox.`. Raises ConfigError."""
        settings = tuple((key, value) for key, value in block.items() if key not in ("name", "budget"))
        return FoolboxAttack(str(block["name"]).removeprefix(PREFIX), block.get("budget"), settings)

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.method}"

    @property
    def bounded(self) -> bool:
        """Whether foolbox attacks within a budget, rather than for the smallest perturbation."""
        return issubclass(getattr(foolbox().attacks, self.method), foolbox().attacks.base.FixedEpsilonAttack)

    @property
    def norm(self) -> Measure:
        begins: list[Measure] = [norm for start, norm in NORMS.items() if self.method.lower().startswith(start)]
        return OTHERS.get(self.method, begins[0] if begins else "none")

    @property
    def family(self) -> Family:
        one_step = "FastGradientAttack" in self.method or self.method in ("FGSM", "FGM")
        return Family.SINGLE_STEP if one_step else Family.HIGH_CONFIDENCE if self.bounded else Family.LOW_CONFIDENCE

    def made(self) -> Any:
        """Build foolbox's own object. Raises ConfigError for a setting that it does not know."""
        try:
            return getattr(foolbox().attacks, self.method)(**dict(self.settings))
        except TypeError as error:
            raise ConfigError(f"attack {self.name!r}: {error}") from error

    def __call__(self, model: Model, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        package, points = foolbox(), inputs.detach().float()
        asked = package.PyTorchModel(Asked(model, inputs.dtype), bounds=(0, 1), device=inputs.device)
        most = {} if self.budget is None else {"epsilon": self.budget}
        with Drawing(generator):
            found = self.made().run(asked, points.clone(), package.Misclassification(labels), **most).detach()
        flat = found.flatten(1)
        usable = flat.isfinite().all(dim=1) & (flat != 0).any(dim=1)
        return torch.where(per_item(usable, found), found, points).to(inputs.dtype)

    def __repr__(self) -> str:
        given = {"budget": self.budget} if self.budget is not None else {}
        settings = ", ".join(f"{key}={value!r}" for key, value in {**given, **dict(self.settings)}.items())
        return f"{self.name}({settings})"
