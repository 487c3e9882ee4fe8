"""The JSON schema of guard.toml, made from the classes that are its settings: for editors, and for Helm's values.

Rule 1: it accepts no setting that `guard.config` does not know and no value that it refuses, as far as a schema can
        tell; it wants TOML's own types, where the code also reads text.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin

from guard.config import MODELS, OF_A_MODEL, ServeConfig
from guard.setting_ranges import RANGES

DIALECT = "http://json-schema.org/draft-07/schema#"  # which Helm 3 and editors of TOML know
TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
NONE = "none"  # as a text it stands for None, in TOML and in variables
COMMENTED_FIELD = re.compile(r"^ {4}(\w+): [^#\n]+?  # (.+)$", re.MULTILINE)
MODEL_KEY = "^[^:]+(:[^:]+)?$"  # NAME or NAME:VERSION


def settings_schema() -> dict[str, Any]:
    """The schema of a whole guard.toml."""
    hints = typing.get_type_hints(ServeConfig)
    told = comments(ServeConfig)
    plain = {
        item.name: setting(item, hints[item.name], told[item.name])
        for item in fields(ServeConfig)
        if item.name != MODELS
    }
    tables = {
        "description": told[MODELS],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": MODEL_KEY},
        "additionalProperties": {
            "type": "object",
            "properties": {name: without_default(plain[name]) for name in OF_A_MODEL},
            "required": ["bundle"],
            "additionalProperties": False,
        },
    }
    return {
        "$schema": DIALECT,
        "title": "guard.toml",
        "description": "Settings of `guard serve`.",
        "type": "object",
        "properties": {**plain, MODELS: tables},
        "additionalProperties": False,
    }


def without_default(found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a setting in a model's table, where the default is what stands above all tables."""
    return {key: value for key, value in found.items() if key != "default"}


def setting(item: Field[Any], hint: Any, comment: str) -> dict[str, Any]:
    """The schema of one setting: its comment, its type, its range and its default."""
    allowed = RANGES.get(item.name)
    described = comment.replace("None:", f'"{NONE}":')
    if allowed is not None and allowed.words not in comment:
        described += f"; {allowed.words}"
    found = {"description": described, **of_type(hint, {} if allowed is None else allowed.schema)}
    default = item.default
    if default is not None and default is not MISSING:
        found["default"] = list(default) if isinstance(default, tuple) else default
    return found


def of_type(hint: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; None is written as the text "none". Example: `int | None`, more than zero."""
    parts = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    (kind,) = (part for part in parts if part is not type(None))
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": {"type": "string"}}
    if kind is int and limits.get("exclusiveMinimum") == 0:
        limits = {"minimum": 1}  # an error that says it plainly
    found = {"type": TYPES[kind], **limits}
    return found if len(parts) == 1 or kind is str else {"anyOf": [found, {"const": NONE}]}


def comments(settings: type) -> dict[str, str]:
    """The comment that the source has behind each setting."""
    return dict(COMMENTED_FIELD.findall(inspect.getsource(settings)))
