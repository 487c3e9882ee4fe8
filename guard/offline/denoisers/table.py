"""Table of denoisers by name, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guard.errors import ConfigError
from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.data.setting_bounds import check_number
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.dct_quantisation import DctQuantisation
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.guided_unet import GuidedUNet
from guard.offline.denoisers.keyed_resize import KeyedResize
from guard.offline.denoisers.learned import Learned
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.denoisers.non_local_means import NonLocalMeans
from guard.offline.denoisers.rectifier import Rectifier
from guard.offline.denoisers.reformer import Reformer
from guard.offline.denoisers.total_variation import TotalVariation

DENOISERS: Mapping[str, Callable[..., Denoiser]] = {
    "bit_depth": BitDepth,
    "dct_quantisation": DctQuantisation,
    "guided_unet": GuidedUNet,
    "keyed_resize": KeyedResize,
    "median": Median,
    "moving_average": MovingAverage,
    "non_local_means": NonLocalMeans,
    "rectifier": Rectifier,
    "reformer": Reformer,
    "total_variation": TotalVariation,
}


def build_denoiser(entry: Mapping[str, Any]) -> Denoiser:
    """Build a denoiser of its name and settings. Raises ConfigError for what does not exist or has no meaning."""
    name = entry.get("name")
    if not isinstance(name, str) or name not in DENOISERS:
        raise ConfigError(f"unknown denoiser {name!r}; known: {', '.join(DENOISERS)}")
    settings = {setting: value for setting, value in entry.items() if setting != "name"}
    try:
        for setting, value in settings.items():
            check_number(setting, value)
        return DENOISERS[name](**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"denoiser {name!r}: {error}") from error


def denoisers(entries: Sequence[Mapping[str, Any]]) -> tuple[Denoiser, ...]:
    """Build a detector's squeezers. Raises ConfigError for none, and for one that is learned, which only repairs."""
    if not entries:
        raise ConfigError(f"squeezers = []; wanted at least one denoiser: {', '.join(DENOISERS)}")
    found = tuple(build_denoiser(entry) for entry in entries)
    if learned := [one.name for one in found if isinstance(one, Learned)]:
        raise ConfigError(
            f"denoiser {learned[0]!r} is a network that is trained for --repair, and no squeezer of a detector; "
            "detector 'magnet' reads what an autoencoder rebuilds"
        )
    return found


def taken_by_all(parts: Sequence[Denoiser]) -> Kinds:
    """Return the kinds of input that each of several denoisers applies to."""
    return EVERY_KIND.intersection(*(part.kinds for part in parts))
