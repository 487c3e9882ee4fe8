"""Checks objects in the side environment `kubectl` against the schemas of Kubernetes' versions, many at once.

From standard input a JSON list of pairs, an object and a version; to standard output a fault for each, or null.
"""

import functools
import json
import sys

import kubernetes_validate
from kubernetes_validate import utils

utils.schema_contents = functools.cache(utils.schema_contents)  # else each object reads 2 MB anew


def fault(one, version):
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{one['kind']} {'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return None


json.dump([fault(one, version) for one, version in json.load(sys.stdin)], sys.stdout)
