"""Second networks as a work directory keeps them, so that a guard can be reopened, refitted and attacked.

Rule 1: what is reopened is what the bundle asks: another file under the same name is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import BundleError, ModelError
from guard.manifest import ModelSpec
from guard.offline.evidence.kinds.second import SecondNetwork
from guard.offline.networks.residual import Design
from guard.offline.second.adapted import Adapted
from guard.offline.second.brought import Brought, open_brought
from guard.offline.second.training import digest_of
from guard.offline.work.directory import WorkDirectory
from guard.offline.work.files import read_arrays, read_json, write_arrays, write_json


def keep_networks(work: WorkDirectory, networks: Sequence[SecondNetwork], brought: Sequence[Brought]) -> None:
    """Write which second networks are asked: the weights of those that were trained, the place of those brought."""
    if not networks:  # a training before this one may have asked some
        work.seconds_asked.unlink(missing_ok=True)
        return
    places, entries = {one.name: one for one in brought}, []
    for network in networks:
        entry: dict[str, Any] = {
            "name": network.name,
            "digest": network.digest,
            "forwards": network.forwards,
            "about": network.about,
        }
        if isinstance(network.network, Adapted):
            place = places[network.name]
            file = Path(place.model)
            model = str(file.resolve()) if file.is_file() else place.model
            entry |= {"brought": asdict(replace(place, model=model))}
        else:
            design: Any = network.network
            entry |= {"design": asdict(design.design)}
            weights = {name: value.numpy() for name, value in network.network.state_dict().items()}
            write_arrays(work.second_weights(network.digest), weights)
        entries.append(entry)
    write_json(work.seconds_asked, entries, indent=2)


def keep_lessons(work: WorkDirectory, hashes: NDArray[np.str_] | None) -> None:
    """Write the content hashes of what a second network learned from or was judged on; None: none was trained."""
    if hashes is None:
        work.lessons.unlink(missing_ok=True)
        return
    write_arrays(work.lessons, {"hashes": hashes})


def kept_lessons(work: WorkDirectory) -> NDArray[np.str_]:
    """Return these hashes; none where none were kept. Raises BundleError where they are damaged."""
    if not work.lessons.exists():
        return np.zeros(0, dtype=np.str_)
    kept = read_arrays(work.lessons)
    if kept is None:
        raise BundleError(f"{work.lessons} is damaged; train the bundle again")
    return np.asarray(kept["hashes"], dtype=np.str_)


def kept_networks(work: WorkDirectory, spec: ModelSpec) -> tuple[SecondNetwork, ...]:
    """Return the second networks that a guard of this model asks; none where none was kept.

    Raises:
        BundleError: what was kept is damaged.
        ModelError: the file of a network that was brought is gone, or another one now.
    """
    entries = read_json(work.seconds_asked) if work.seconds_asked.exists() else []
    try:
        return tuple(reopened(work, entry, spec) for entry in entries)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{work.seconds_asked} cannot be read ({error}); train the bundle again") from error


def reopened(work: WorkDirectory, entry: dict[str, Any], spec: ModelSpec) -> SecondNetwork:
    """Reopen one second network. Raises ModelError where it is not the one that was kept."""
    digest, forwards, about = str(entry["digest"]), float(entry["forwards"]), str(entry["about"])
    network: torch.nn.Module
    if "brought" in entry:
        bounds = entry["brought"]["bounds"]
        brought = Brought(str(entry["brought"]["model"]), bounds and (tuple(bounds[0]), tuple(bounds[1])))
        opened = open_brought(brought, spec.input.shape, (spec.input.low, spec.input.high))
        network, found = opened.adapted, opened.digest
    else:
        design = Design(**{**entry["design"], "item_shape": tuple(entry["design"]["item_shape"])})
        weights = read_arrays(work.second_weights(digest))
        if weights is None:
            raise BundleError(f"{work.second_weights(digest)} is missing or damaged; train the bundle again")
        network, found = design.build(normed=False), digest_of(design, weights)
        network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
        network.eval().requires_grad_(requires_grad=False)
    if found != digest:
        raise ModelError(
            f"the second network {entry['name']!r} is no longer the one that the bundle asks (digest {found[:12]}…, "
            f"the bundle's {digest[:12]}…); bring that file back, or train a new bundle"
        )
    return SecondNetwork(str(entry["name"]), digest, forwards, network, about)
