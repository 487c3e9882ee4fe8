"""Table of attacks, written out. An attack listed here is tested by being listed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from guard.errors import ConfigError
from guard.offline.attacks.attack import Attack, Traits
from guard.offline.attacks.methods.adapted import Apgd, Boundary, Fab, HopSkipJump, Square
from guard.offline.attacks.methods.bim import Bim
from guard.offline.attacks.methods.cw import Cw
from guard.offline.attacks.methods.cw_linf import CwLinf
from guard.offline.attacks.methods.deepfool import DeepFool
from guard.offline.attacks.methods.feature_visualisation import FeatureVisualisation
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.methods.frame import Frame, UniversalFrame
from guard.offline.attacks.methods.gd_uap import GdUap
from guard.offline.attacks.methods.ig_deletion import IgDeletion
from guard.offline.attacks.methods.lbfgs import Lbfgs
from guard.offline.attacks.methods.lemna_surrogate import LemnaSurrogate
from guard.offline.attacks.methods.lime_surrogate import LimeSurrogate
from guard.offline.attacks.methods.map_keeping import MapFaking, MapKeeping
from guard.offline.attacks.methods.map_only import MapOnly
from guard.offline.attacks.methods.on_manifold import OnManifold
from guard.offline.attacks.methods.patch import Patch
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.methods.rfgsm import Rfgsm
from guard.offline.attacks.methods.smoothgrad import SmoothGrad
from guard.offline.attacks.methods.spatial import Spatial
from guard.offline.attacks.methods.substitute import Substitute
from guard.offline.attacks.methods.tabular_evasion import TabularEvasion
from guard.offline.attacks.methods.uap import Uap
from guard.offline.attacks.ranges import takes
from guard.offline.data.norms import Measure

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "fgsm": Fgsm,
    "pgd": Pgd,
    "cw": Cw,
    "deepfool": DeepFool,
    "smoothgrad": SmoothGrad,
    "ig_deletion": IgDeletion,
    "lime_surrogate": LimeSurrogate,
    "lemna_surrogate": LemnaSurrogate,
    "tabular_evasion": TabularEvasion,
    "substitute": Substitute,
    "on_manifold": OnManifold,
    "feature_visualisation": FeatureVisualisation,
    "uap": Uap,
    "gd_uap": GdUap,
    "patch": Patch,
    "frame": Frame,
    "universal_frame": UniversalFrame,
    "apgd": Apgd,
    "square": Square,
    "fab": Fab,
    "hop_skip_jump": HopSkipJump,
    "boundary": Boundary,
    "spatial": Spatial,
    "rfgsm": Rfgsm,
    "bim": Bim,
    "cw_linf": CwLinf,
    "lbfgs": Lbfgs,
    "map_keeping": MapKeeping,
    "map_faking": MapFaking,
}

# These change the explanation of the answer and not the answer: none of their items ever counts as attacked, so that no
# recipe may learn from them. They are for asking how far a map, and a detector that reads it, can be moved.
MAP_ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "map_only": MapOnly,
}


def build_attack(name: str, settings: Mapping[str, Any]) -> Attack:
    """Build an attack by its name. Raises ConfigError for names or settings unknown, missing or out of range."""
    if name not in ATTACKS:
        raise ConfigError(f"unknown attack {name!r}; {nearest(name, ATTACKS)}")
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            raise ConfigError(f"attack {name!r}: unknown setting {setting!r}; {nearest(setting, known)}")
    traits = traits_of(name)
    for setting, value in settings.items():
        if isinstance(value, list) and setting not in (*traits.ranges, *traits.choices):
            raise ConfigError(f"attack {name!r}: {setting} = {value!r}; {takes(traits)}")
    try:
        return ATTACKS[name](**settings)
    except TypeError as error:
        raise ConfigError(f"attack {name!r}: {error}") from error


def settings_of(name: str) -> tuple[str, ...]:
    """Return the names of an attack's settings, in the order in which it prints them."""
    attack: Any = ATTACKS[name]
    return tuple(field.name for field in fields(attack))


def traits_of(name: str) -> Traits:
    """Return what an attack's class states of it."""
    attack: Any = ATTACKS[name]
    traits: Traits = attack.traits
    return traits


def budget_norm(name: str) -> Measure | None:
    """Return the norm of the budget that an attack has to be given, or None where it needs none."""
    attack: Any = ATTACKS[name]
    needed = any(field.name == "budget" and field.default is MISSING for field in fields(attack))
    return attack.norm if needed else None


def nearest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
