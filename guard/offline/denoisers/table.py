"""The table of denoisers, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.evidence.needs import Denoiser

DENOISERS: Mapping[str, Callable[..., Denoiser]] = {
    "bit_depth": BitDepth,
    "median": Median,
}
