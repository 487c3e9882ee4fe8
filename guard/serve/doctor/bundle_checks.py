"""Checks of bundles: whether they open, who signed them, and whether they can keep what the settings promise."""

from __future__ import annotations

import math
from collections.abc import Iterator

from guard.calibration import check_promise, realised_rates
from guard.errors import BundleError, GuardError, PromiseError
from guard.serve.doctor.remark import Remark
from guard.serve.doctor.settings_checks import is_installed
from guard.serve.doctor.setup import NamedBundle, Setup
from guard.serve.models import check_distinct
from guard.serve.open_models import OpenedModel
from guard.signing import Trust, short, verify

RATES = ("reject_rate", "flag_rate")
DIGEST_CHARACTERS = 12


def bundle(setup: Setup) -> Iterator[Remark]:
    """Whether each bundle opens with every file as its manifest says, and fits the settings of its model."""
    for named in setup.bundles:
        if named.bundle is None:
            if named.fault:
                yield Remark("bundle", "wrong", blamed(named, named.fault))
            continue
        if fault := settings_fault(named, setup):
            yield Remark("bundle", "wrong", blamed(named, fault))
            continue
        manifest = named.bundle.manifest
        version = f", version {manifest.model.version}" if manifest.model.version else ""
        yield Remark(
            "bundle",
            "ok",
            f"{named.label}: {len(named.bundle.files)} files as the manifest has them, made for "
            f"{manifest.model.name!r}{version}, digest {named.bundle.digest[:DIGEST_CHARACTERS]}",
        )
    try:
        specs = [(named.config.place, spec) for named in setup.bundles if (spec := named.spec) is not None]
        check_distinct((place, spec.name, spec.version) for place, spec in specs)
    except GuardError as error:
        yield Remark("bundle", "wrong", str(error))


def settings_fault(named: NamedBundle, setup: Setup) -> str:
    """What a bundle cannot do that its model's settings ask for; empty where it can, rates aside."""
    if named.bundle is None:
        return ""
    try:
        OpenedModel.of(named.config, named.bundle, allow_methods=setup.given.config.allow_methods)
    except PromiseError:
        return ""  # told by the check of the promise
    except GuardError as error:
        return str(error)
    return ""


def signature(setup: Setup) -> Iterator[Remark]:
    """Whether each bundle is signed by a key that the settings trust."""
    config = setup.given.config
    if not config.trusted_keys:
        if setup.bundles:
            yield Remark("signature", "ok", "no trusted_keys: signatures are not looked at")
        return
    if not is_installed("trusted_keys"):  # told by the check of settings
        return
    try:
        trust = Trust.of(config.trusted_keys, required=config.require_signature)
    except GuardError as error:
        yield Remark("signature", "wrong", str(error))
        return
    for named in setup.bundles:
        if named.bundle is None:
            continue
        try:
            signer = verify(named.bundle, trust)
        except BundleError as error:
            yield Remark("signature", "wrong", blamed(named, str(error)))
            continue
        if signer is None:
            cure = "require_signature = false lets it be used; sign it with `guard sign`"
            yield Remark("signature", "warn", f"{named.label}: not signed; {cure}")
        else:
            yield Remark("signature", "ok", f"{named.label}: signed by the key {short(signer.id)} ({signer.file})")


def promise(setup: Setup) -> Iterator[Remark]:
    """Whether the clean items that a bundle was calibrated on can hold the promised rates, and how closely."""
    for named in setup.bundles:
        if named.bundle is None:
            continue
        manifest, items = named.bundle.manifest, named.bundle.calibration.items
        kept = []
        for name in RATES:
            chosen = getattr(named.config, name)
            rate = getattr(manifest, name) if chosen is None else chosen
            try:
                thin = check_promise(rate, items, name=name)
            except PromiseError as error:
                yield Remark("promise", "wrong", f"{named.label}: {error}; or raise the rate")
                continue
            low, high = realised_rates(rate, items)
            interval = f"{100 * low:.2g} to {100 * high:.2g} %"
            if thin:
                cure = "calibrate on more clean items (guard calibrate), or raise the rate"
                yield Remark("promise", "warn", f"{named.label}: {thin}: {interval}, with 95 %; {cure}")
            else:
                kept.append(f"{name} = {rate:g}: {interval}{largest_request(named, rate, items)}")
        if kept:
            said = f"{named.label}: of clean items, with 95 %, by {items:,} items of calibration: {', '.join(kept)}"
            yield Remark("promise", "ok", said)


def largest_request(named: NamedBundle, rate: float, items: int) -> str:
    """The largest request that can be judged as a whole, in words; empty where items are judged one by one."""
    if named.config.rows != "request":
        return ""
    return f" of requests, of up to {items // max(1, math.ceil(1 / rate) - 1)} items (rows = request)"


def blamed(named: NamedBundle, fault: str) -> str:
    """Put the table that names the bundle in front of a fault."""
    return f"{named.config.place}: {fault}" if named.config.place else fault
