"""The table of denoisers, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median

DENOISERS: Mapping[str, Callable[..., Denoiser]] = {
    "bit_depth": BitDepth,
    "median": Median,
}
