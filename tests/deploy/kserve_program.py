"""Checks KServe's resources in the side environment `kserve`, against the types of its own Python package.

From standard input a JSON list of objects; to standard output a list of faults for each: a field that the type does
not have, a value of another type, a field that is wanted and not there.
"""

import json
import re
import sys

import kserve
import kubernetes.client
from kubernetes.client.configuration import Configuration
from pydantic import ValidationError

PREFIX = {"serving.kserve.io/v1beta1": "V1beta1", "serving.kserve.io/v1alpha1": "V1alpha1"}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}
PARTS = re.compile(r"(list|dict)[\[(](?:str, )?(.*)[\])]")


def type_named(name):
    return getattr(kserve, name, None) or getattr(kubernetes.client, name, None) or getattr(kserve.models, name, None)


def faults(given, kind, place):
    """Each fault of a value that is to be of the type with this name."""
    if found := PARTS.fullmatch(kind):
        container, inner = found.groups()
        if not isinstance(given, list if container == "list" else dict):
            yield f"{place} is no {container}"
            return
        for key, value in enumerate(given) if container == "list" else given.items():
            yield from faults(value, inner, f"{place}[{key}]" if container == "list" else f"{place}.{key}")
        return
    if kind in PLAIN:
        if not isinstance(given, PLAIN[kind]) or (isinstance(given, bool) and kind != "bool"):
            yield f"{place} is no {kind}"
        return
    model = type_named(kind)
    if hasattr(model, "model_validate"):  # Kubernetes' own
        try:
            model.model_validate(given)
        except ValidationError as error:
            for one in error.errors():
                yield ".".join([place, *map(str, one["loc"])]) + f": {one['msg']}"
        return
    if not hasattr(model, "openapi_types"):
        return
    if not isinstance(given, dict):
        yield f"{place} is no {kind}"
        return
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, value in given.items():
        if key not in names:
            yield f"{place}.{key} is no field of {kind}"
        else:
            yield from faults(value, model.openapi_types[names[key]], f"{place}.{key}")
    checking = Configuration()
    checking.client_side_validation = True
    try:
        model(local_vars_configuration=checking, **{names[key]: value for key, value in given.items() if key in names})
    except (ValueError, TypeError) as error:  # a field that is wanted, or a value outside of its list
        yield f"{place}: {error}"


json.dump(
    [list(faults(one, PREFIX[one["apiVersion"]] + one["kind"], one["kind"])) for one in json.load(sys.stdin)],
    sys.stdout,
)
