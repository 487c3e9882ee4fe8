"""The worst case over several attacks once more, item by item and without numpy, to hold the report's against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guard.offline.evaluation.attack_rows import Outcomes
from guard.offline.findings.evaluation import Worst
from guard.offline.findings.intervals import Promise, Rate


def counted(fates: Mapping[str, Outcomes], promises: Sequence[Promise], reject_rate: float) -> Worst:
    """Over the items that every attack met, in whichever order it met them."""
    by_item = [
        {one: (bool(wrong), float(p)) for one, wrong, p in zip(fate.hashes, fate.wrong, fate.p_value, strict=True)}
        for fate in fates.values()
    ]
    met = [[fate[one] for fate in by_item] for one in by_item[0] if all(one in fate for fate in by_item)]

    def handled(rate: float) -> Rate:
        return Rate.counted(sum(all(p <= rate or not wrong for wrong, p in item) for item in met), len(met))

    return Worst(
        attacks=tuple(fates),
        bare=Rate.counted(sum(not any(wrong for wrong, _ in item) for item in met), len(met)),
        handled={p.rate: handled(p.rate) if p.reason is None else None for p in promises},
        robust_accuracy=handled(reject_rate),
    )
