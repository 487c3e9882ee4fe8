"""Table of denoisers by name, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.denoiser import Denoiser
from guard.offline.denoisers.median import Median

DENOISERS: Mapping[str, Callable[..., Denoiser]] = {
    "bit_depth": BitDepth,
    "median": Median,
}


def denoisers(entries: Sequence[Mapping[str, Any]]) -> tuple[Denoiser, ...]:
    return tuple(DENOISERS[e["name"]](**{k: v for k, v in e.items() if k != "name"}) for e in entries)
