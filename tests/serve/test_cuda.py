"""The guard on a CUDA device: the CPU's verdicts, no step of a program left on the CPU, limits of memory kept.

These run where there is a device (`python -m tests.bench.cuda` runs them there); elsewhere they are skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.errors import DeviceError
from guard.runtime import Runtime
from guard.session import PROVIDERS, CudaOptions, Session, onnxruntime, providers
from tests.serve import tiny_bundle
from tests.serve.guarded import guarding

pytestmark = pytest.mark.gpu
MIB = 2**20


def mixed() -> NDArray[Any]:
    return np.concatenate([tiny_bundle.clean(200, seed=21), tiny_bundle.bright(3), tiny_bundle.striped(3)])


def test_the_device_gives_the_verdicts_of_the_cpu(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    cuda, cpu = Runtime.open(opened, device="cuda"), Runtime.open(opened, device="cpu")
    cuda.self_check()
    there, here = cuda.read(mixed(), complete=True), cpu.read(mixed(), complete=True)
    assert np.allclose(there.logits, here.logits, rtol=0, atol=1e-4)
    assert np.allclose(there.p_value, here.p_value, rtol=0, atol=2 / tiny_bundle.ITEMS)
    for rate in (tiny_bundle.REJECT_RATE, tiny_bundle.FLAG_RATE):
        assert np.array_equal(there.p_value <= rate, here.p_value <= rate)


def test_no_node_of_a_program_runs_on_the_cpu(bundle: Path, tmp_path: Path) -> None:
    """A session on the device may still place single nodes on the CPU, which costs a copy each way."""
    ort = onnxruntime()
    opened = Bundle.open(bundle)
    for program in opened.manifest.programs:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / program.name)
        session = ort.InferenceSession(
            str(opened.path / program.file), options, providers=providers("cuda", CudaOptions())
        )
        session.run(None, {session.get_inputs()[0].name: tiny_bundle.clean(4)})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        placed = {event["args"]["provider"] for event in events if "provider" in event.get("args", {})}
        assert placed == {PROVIDERS["cuda"]}, program.name


def test_a_guard_on_the_device_passes_and_rejects(bundle: Path) -> None:
    async def story() -> None:
        async with guarding(bundle, device="cuda", device_memory_bytes=256 * MIB) as guarded:
            assert (await guarded.client.infer(tiny_bundle.ordinary(2))).code.name == "OK"
            assert (await guarded.client.infer(tiny_bundle.bright(1))).code.name == "PERMISSION_DENIED"
            assert (await guarded.client.infer(tiny_bundle.striped(1))).code.name == "PERMISSION_DENIED"

    asyncio.run(story())


def test_a_session_keeps_its_limit_of_memory_and_lives_on(bundle: Path) -> None:
    """What does not fit is one failed batch; the next one that fits is answered."""
    opened = Bundle.open(bundle)
    program = opened.manifest.programs[-1]
    session = Session(
        opened.path / program.file, device="cuda", threads=1, cuda=CudaOptions(memory_bytes=4 * MIB), shared=True
    )
    with pytest.raises(Exception, match=r"(?i)memory|alloc"):
        session.run(["logits"], tiny_bundle.clean(200_000))
    assert session.run(["logits"], tiny_bundle.clean(8))[0].shape == (8, tiny_bundle.CLASSES)


@pytest.mark.parametrize(
    ("environment", "cuda"),
    [({"CUDA_VISIBLE_DEVICES": "-1"}, CudaOptions()), ({}, CudaOptions(device_id=7))],
    ids=["no device is visible", "no such device"],
)
def test_what_would_fall_back_is_refused(
    bundle: Path, root: Path, environment: dict[str, str], cuda: CudaOptions
) -> None:
    code = (
        "import sys; from pathlib import Path; from guard.bundle import Bundle; from guard.errors import DeviceError\n"
        "from guard.runtime import Runtime; from guard.session import CudaOptions\n"
        f"try:\n    Runtime.open(Bundle.open(Path(sys.argv[1])), device='cuda', cuda={cuda!r})\n"
        "except DeviceError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == DeviceError.exit_code, done.stdout + done.stderr
    assert "'cuda' was asked for" in done.stdout
