"""A model of fewer bits is trained on like any other; its bundle says how far it is, and speaks its wire."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from guard.bundle import Bundle
from guard.offline.job.recipe import parse
from guard.offline.train import train
from guard.offline.work.progress import Stages
from guard.runtime import Runtime
from guard.serve.log import Log
from guard.serve.model_server import ServedModel
from guard.serve.model_server import serving as model_serving
from guard.serve.server import running
from tests.offline import tiny
from tests.reduced_models import write_half, write_quantised
from tests.serve.guarded import calling, config_for, metric_of, until

RECIPE: dict[str, Any] = {
    **tiny.RECIPE,
    "detector": [d for d in tiny.RECIPE["detector"] if d["name"] in ("mahalanobis", "feature_squeezing")],
    "attack": [{"name": "fgsm", "budget": 0.25}],
    "left_out": [],
}


def write_model(form: str, file: Path) -> Path:
    if form == "float16":
        return write_half(tiny.image_model(), file, tiny.SHAPE)
    return write_quantised(tiny.image_model(), file, tiny.data(128, seed=3)[0], per_channel=True)


@pytest.mark.parametrize(
    ("form", "datatype", "computes"),
    [("float16", "FP16", "computes in float16"), ("QDQ", "FP32", "computes in quantised numbers (QDQ)")],
)
def test_a_bundle_of_a_model_in_fewer_bits(form: str, datatype: str, computes: str, tmp_path: Path) -> None:
    file, said = write_model(form, tmp_path / "m.onnx"), io.StringIO()
    job = tiny.job(tmp_path, model=str(file), recipe=parse(RECIPE, "tiny"), adaptive_items=4, adaptive_steps=2)
    bundle = train(job, Stages(Console(file=said, width=120)))
    difference = bundle.manifest.provenance["served"]
    assert difference["form"] == computes
    assert (difference["items"], difference["changed"] <= 0.04) == (256, True)
    assert 0 < difference["largest"] < 1.0  # it clips what its calibration never saw, and without VNNI sums in 16 bits
    assert f"the served model {computes}" in " ".join(said.getvalue().split())
    spec = bundle.manifest.model.input
    assert (spec.datatype, spec.grid) == (datatype, tiny.GRID)
    runtime = Runtime.open(bundle, threads=1)
    runtime.self_check()
    wire = spec.box.from_unit(tiny.data(8, seed=5)[0])
    assert wire.dtype == spec.dtype
    assert runtime.read(wire).p_value.shape == (8,)
    repaired = runtime.repair(wire, "median").images
    assert (repaired.dtype, repaired.shape) == (spec.dtype, wire.shape)
    assert not np.array_equal(repaired, wire)
    passed, counted = asyncio.run(sent_through(bundle, file, wire))
    assert passed >= 4
    assert counted["guard_upstream_compared_items_total"] == passed
    assert counted["guard_upstream_disagreement_items_total"] <= 2
    assert counted["guard_bundle_disagreement_ratio"] == pytest.approx(bundle.manifest.measured_disagreement)


async def sent_through(bundle: Bundle, file: Path, wire: NDArray[Any]) -> tuple[int, dict[str, float]]:
    """How many of the items [item, ...] pass, each with the answer that a direct call gets; what was counted."""
    model = bundle.manifest.model
    served = ServedModel(file, name=model.name, version="", threads=1)
    async with (
        model_serving(served, "127.0.0.1:0") as upstream,
        running(config_for(bundle.path, upstream), log=Log("info", io.StringIO())) as guard,
        calling(upstream) as direct,
        calling(guard.address) as client,
    ):
        await until(lambda: guard.readiness.because is None, lambda: str(guard.readiness.because))
        bare = [await direct.infer(item[None], name=model.name) for item in wire]
        through = [await client.infer(item[None], name=model.name) for item in wire]
        assert all(answer.ok for answer in bare)
        passed = [(b.body, t.body) for b, t in zip(bare, through, strict=True) if t.ok]
        assert all(answer == wanted for wanted, answer in passed)
        names = (
            "guard_upstream_compared_items_total",
            "guard_upstream_disagreement_items_total",
            "guard_bundle_disagreement_ratio",
        )
        return len(passed), {name: await metric_of(guard.metrics_address, name) for name in names}
