"""Checks custom resources in the side environment `crds`, against the types that their projects publish.

From standard input a JSON list of objects; to standard output a list of faults for each: a wrong type, a missing
field, a field that the type does not have.
"""

import importlib
import json
import sys

from pydantic import ValidationError

MODULES = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
    "networking.istio.io/v1": "cloudcoil.models.istio.networking.v1",
    "networking.istio.io/v1alpha3": "cloudcoil.models.istio.networking.v1alpha3",
    "security.istio.io/v1": "cloudcoil.models.istio.security.v1",
}


def unknown(given, kept, place):
    """Each field that was given and is not in the type, by its place."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{place}.{key} is no field"
            else:
                yield from unknown(value, kept[key], f"{place}.{key}")
    if isinstance(given, list) and isinstance(kept, list):
        for number, (value, same) in enumerate(zip(given, kept, strict=True)):
            yield from unknown(value, same, f"{place}[{number}]")


def faults(one):
    module = MODULES.get(one["apiVersion"])
    if module is None:
        return [f"no types for {one['apiVersion']}"]
    kind = getattr(importlib.import_module(module), one["kind"])
    try:
        read = kind.model_validate(one)
    except ValidationError as error:
        return [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
    return list(unknown(one, read.model_dump(mode="json", by_alias=True, exclude_unset=True), one["kind"]))


json.dump([faults(one) for one in json.load(sys.stdin)], sys.stdout)
