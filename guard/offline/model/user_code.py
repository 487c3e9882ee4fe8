"""Code of the user's own, named as `module:attribute`, with the working directory on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def import_attribute(reference: str) -> tuple[ModuleType, Any]:
    """Return a module and the attribute that a reference names.

    Raises ImportError, AttributeError or ValueError where there is none; what the module itself raises comes through.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = importlib.import_module(module_name)
    return module, getattr(module, name)
