"""Names of the kinds of input, by which a part states what it applies to."""

from __future__ import annotations

from typing import Literal, get_args

KindName = Literal["images", "series", "vectors", "tabular"]
Kinds = frozenset[KindName]

EVERY_KIND: Kinds = frozenset(get_args(KindName))
IN_PLACES: Kinds = frozenset({"images", "series"})  # whose values have neighbours in space or time
ALIKE: Kinds = EVERY_KIND - {"tabular"}  # whose values may all move by the same amount
ONLY_IMAGES: Kinds = frozenset({"images"})
OF_FEATURES: Kinds = frozenset({"vectors", "tabular"})
