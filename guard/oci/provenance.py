"""The provenance of a bundle as annotations of its image: what a registry shows without pulling it.

Rule: every annotation follows from the bundle, and `created` from SOURCE_DATE_EPOCH; so the same bundle is the same
image wherever it is packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from guard.bundle import Bundle
from guard.errors import ConfigError

STANDARD, OURS = "org.opencontainers.image.", "guard.v1."  # the latter as the guard's own protocol is called
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"


def image_annotations(bundle: Bundle, created: str | None = None) -> dict[str, str]:
    """Return what an image says of its bundle; facts that the bundle does not hold are left out."""
    manifest = bundle.manifest
    model, provenance = manifest.model, manifest.provenance
    served = f"{model.name}:{model.version}" if model.version else model.name
    facts = {
        f"{STANDARD}title": f"guard bundle for {served}",
        f"{STANDARD}version": model.version,
        f"{STANDARD}created": created or "",
        f"{OURS}bundle.digest": bundle.digest,
        f"{OURS}bundle.identity": bundle.identity,
        f"{OURS}bundle.format": str(manifest.format),
        f"{OURS}model.name": model.name,
        f"{OURS}model.fingerprint": model.fingerprint,
        f"{OURS}promise": f"{manifest.reject_rate:g} rejected, {manifest.flag_rate:g} flagged or rejected",
        f"{OURS}recipe": str(manifest.recipe.get("name", "")),
        f"{OURS}seed": str(manifest.seed),
        f"{OURS}made-by": versions_text(manifest.made_by),
        f"{OURS}parent": str(table(provenance, "calibrated").get("parent", "")),
    }
    for name in table(provenance, "sources"):
        facts[f"{OURS}source.{name}"] = str(table(table(provenance, "sources"), name).get("digest", ""))
    return {name: text for name, text in facts.items() if text}


def versions_text(made_by: Mapping[str, Any]) -> str:
    """The versions of what made a bundle, in one line."""
    return ", ".join(f"{name} {version}" for name, version in made_by.items())


def table(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The facts of that name; none where a bundle of another version has something else there."""
    found = facts.get(name)
    return found if isinstance(found, Mapping) else {}


def created_text(epoch: str | None) -> str | None:
    """The time that SOURCE_DATE_EPOCH names, as annotations write it; None where it is not set. Raises ConfigError."""
    if not epoch:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"{EPOCH_VARIABLE} is {epoch!r}; wanted seconds since 1970, as a whole number") from error
