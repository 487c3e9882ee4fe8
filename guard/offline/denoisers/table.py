"""Table of denoisers by name, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guard.offline.data.kind_names import EVERY_KIND, Kinds
from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.dct_quantisation import DctQuantisation
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.moving_average import MovingAverage
from guard.offline.denoisers.non_local_means import NonLocalMeans
from guard.offline.denoisers.total_variation import TotalVariation

DENOISERS: Mapping[str, Callable[..., Denoiser]] = {
    "bit_depth": BitDepth,
    "dct_quantisation": DctQuantisation,
    "median": Median,
    "moving_average": MovingAverage,
    "non_local_means": NonLocalMeans,
    "total_variation": TotalVariation,
}


def denoisers(entries: Sequence[Mapping[str, Any]]) -> tuple[Denoiser, ...]:
    return tuple(DENOISERS[e["name"]](**{k: v for k, v in e.items() if k != "name"}) for e in entries)


def taken_by_all(parts: Sequence[Denoiser]) -> Kinds:
    """Return the kinds of input that each of several denoisers applies to."""
    return EVERY_KIND.intersection(*(part.kinds for part in parts))
