"""A file that the guard cannot open, but that answers clients, is measured against the float model that it is from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import QuantFormat, quantize_dynamic

from guard.errors import ModelError
from guard.offline.job.job import Job, open_job
from guard.offline.model.open_model import Source, open_model
from guard.offline.preflight.check import model_lines
from tests.offline import tiny
from tests.onnx_files import write_onnx
from tests.reduced_models import write_double, write_half, write_quantised


@pytest.fixture
def job(tmp_path: Path) -> Job:
    file = write_onnx(tiny.image_model(), tmp_path / "m.onnx", tiny.SHAPE, exporter="legacy")
    return tiny.job(tmp_path, model=str(file))


def served(form: str, folder: Path) -> Path:
    images = tiny.data(400, seed=3)[0]
    if form == "dynamic":
        float_file = write_onnx(tiny.image_model(), folder / "f.onnx", tiny.SHAPE, exporter="legacy")
        quantize_dynamic(float_file, folder / "s.onnx")
        return folder / "s.onnx"
    return write_quantised(tiny.image_model(), folder / "s.onnx", images, form=QuantFormat.QOperator)


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_a_file_of_operators_on_bytes(form: str, job: Job, tmp_path: Path) -> None:
    classifier, data = open_job(replace(job, served=served(form, tmp_path)))
    found = classifier.difference
    assert found is not None
    assert (found.form, found.items, found.changed <= 0.03) == ("is s.onnx", 256, True)
    assert found.largest is not None
    assert 0.001 < found.largest < 0.5
    assert ("precision", str(found)) in model_lines(classifier)
    assert len(data) == 640


def test_the_model_itself_is_no_difference(job: Job) -> None:
    found = open_job(replace(job, served=Path(job.model)))[0].difference
    assert found is not None
    assert found.changed == 0
    assert found.largest == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("input_type", [None, "FP32", "FP64"])
@pytest.mark.parametrize("of_served", ["FP32", "FP64"])
@pytest.mark.parametrize("of_model", ["FP32", "FP64"])
def test_a_file_may_take_what_clients_send_or_what_it_was_made_from(
    of_model: str, of_served: str, input_type: str | None, job: Job, tmp_path: Path
) -> None:
    files = {"FP32": Path(job.model), "FP64": tmp_path / "double.onnx"}
    write_double(tiny.image_model(), files["FP64"], tiny.SHAPE)
    asked = replace(job, model=str(files[of_model]), served=files[of_served], input_type=input_type)
    if of_served not in (of_model, input_type):
        with pytest.raises(ModelError, match="wanted the same on the wire"):
            open_job(asked)
        return
    classifier, _ = open_job(asked)
    assert classifier.spec.input.datatype == (input_type or of_model)
    assert classifier.difference is not None
    assert classifier.difference.changed == 0


def test_another_model_is_refused(job: Job, tmp_path: Path) -> None:
    other = write_onnx(tiny.network().eval(), tmp_path / "other.onnx", tiny.SHAPE, exporter="legacy")
    with pytest.raises(ModelError, match=r"the served model is other\.onnx.*at most 5% of the predictions"):
        open_job(replace(job, served=other))


def refused(file: Path, words: str, model: Path) -> None:
    with pytest.raises(ModelError, match=words):
        open_model(Source(str(model), tiny.SHAPE, served=file))


def test_files_that_cannot_answer_these_clients(job: Job, tmp_path: Path) -> None:
    model = Path(job.model)
    refused(tmp_path / "no.onnx", r"--served .*no\.onnx does not exist; wanted the \.onnx file", model)
    (tmp_path / "torn.onnx").write_bytes(np.arange(9).tobytes())
    refused(tmp_path / "torn.onnx", r"--served .*torn\.onnx cannot be loaded by ONNX Runtime", model)
    half = write_half(tiny.image_model(), tmp_path / "half.onnx", tiny.SHAPE)
    refused(half, r"takes tensor\(float16\), the guarded model float32; wanted the same on the wire", model)
    named = write_onnx(tiny.image_model(), tmp_path / "named.onnx", tiny.SHAPE, input_names=["picture"])
    refused(named, r"has no input 'input', which the guarded model has; it has: picture", model)
