"""For maintainers: `guard check` and `guard train` on more pictures than memory holds, killed once and taken up again.

    python -m tests.bench.scale                 100,000 JPEGs of 224 x 224; takes an hour, and 4 GB of disk
    python -m tests.bench.scale --quick         2,000 JPEGs of 32 x 32, with next to no memory allowed; a minute
    python -m tests.bench.scale --only check    what is long already made is not made again in the same --folder

1,000 pictures are cropped 100 times each, with a fixed seed: those of `--pictures`, a folder of class folders, or
generated ones. Classes are quarters of the pictures by their brightness. The model is a small convolutional network
with random weights whose last layer is fitted. The memory is that of the process and its children, as they were seen
50 times a second; what was read twice is what the guard itself did not know from before.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tests.bench.sidecar import ROOT, resident_mib, table

Pixels = NDArray[np.uint8]
CLASSES, FITTED_ITEMS = 4, 500
JPEG_QUALITY, MIN_CROP_SHARE = 85, 0.7
MAX_CHECK_S, MAX_FIRST_LINE_S, MAX_RSS_MIB = 600.0, 5.0, 2048.0
TINY_MEMORY = "import guard.array_room as room; room.MAX_MEMORY_SHARE = 1e-6\n"
COMMAND = "import sys; from guard.cli import main; main()"
KNOWN = re.compile(r"; ([\d,]+) were\s+known from an\s+earlier reading")


@dataclass(frozen=True)
class Size:
    """How much is generated, and what is asked for."""

    pictures: int
    crops: int
    side: int
    asked: tuple[str, ...]  # of check and of train
    report: tuple[str, ...] = ()  # of train alone
    setting: str = ""  # code that runs before the guard

    @property
    def items(self) -> int:
        return self.pictures * self.crops


FULL = Size(1_000, 100, 224, ("--minutes", "15"))
QUICK_TRAIN = ("--minutes", "0.5", "--clean-items", "900", "--craft-items", "60", "--attack-items", "30")
QUICK_RATES = ("--reject-rate", "0.05", "--flag-rate", "0.1")
SMALL_REPORT = ("--adaptive-items", "5", "--adaptive-steps", "5")
QUICK = Size(100, 20, 32, (*QUICK_TRAIN, *QUICK_RATES), SMALL_REPORT, TINY_MEMORY)


def originals(size: Size, folder: Path | None) -> list[Pixels]:
    """The pictures that are cropped, [height, width, 3], the darkest first."""
    if folder is not None and folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".webp", ".jpg", ".jpeg", ".png"))
        found = [np.asarray(Image.open(file).convert("RGB")) for file in files[: size.pictures]]
    else:
        found = [generated(number) for number in range(size.pictures)]
    return sorted(found, key=lambda picture: float(picture.mean()))


def generated(number: int) -> Pixels:
    """Clouds of two colours, as bright as the number says."""
    draw = np.random.default_rng(number)
    coarse = draw.uniform(0, 255, (9, 9, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC), np.float64)
    return np.asarray((smooth * draw.uniform(0.3, 1)).clip(0, 255), np.uint8)


def crop(picture: Pixels, side: int, draw: np.random.Generator) -> Image.Image:
    """A random square of a picture, mirrored or not."""
    shortest = min(picture.shape[:2])
    edge = int(draw.uniform(MIN_CROP_SHARE, 1) * shortest)
    top, left = (int(draw.integers(0, length - edge + 1)) for length in picture.shape[:2])
    square = picture[top : top + edge, left : left + edge]
    mirrored = square[:, ::-1] if draw.random() < 0.5 else square
    return Image.fromarray(np.ascontiguousarray(mirrored)).resize((side, side), Image.Resampling.BILINEAR)


def write_crops(data: Path, size: Size, pictures: Sequence[Pixels]) -> None:
    """Write the class folders, a JPEG a crop; those that are there already are left."""

    def write(place: int) -> None:
        for number, picture in enumerate(pictures):
            folder = data / f"quarter-{number * CLASSES // len(pictures)}"
            file = folder / f"{number:04}-{place:03}.jpg"
            if not file.exists():
                unfinished = file.with_suffix(".unfinished")
                square = crop(picture, size.side, np.random.default_rng((number, place)))
                square.save(unfinished, format="JPEG", quality=JPEG_QUALITY)
                unfinished.rename(file)

    for quarter in range(CLASSES):
        (data / f"quarter-{quarter}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(size.crops)))


def network() -> nn.Sequential:
    """A small network for pictures of any size, its weights random."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU()]
    for inputs, outputs in ((8, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)).eval()


def write_model(file: Path, data: Path, size: Size) -> float:
    """Fit the last layer on some of the crops and write the model; its accuracy on others."""
    files = np.random.default_rng(0).permutation(sorted(data.rglob("*.jpg")))[: 2 * FITTED_ITEMS]
    labels = torch.tensor([int(Path(one).parent.name[-1]) for one in files])
    model = network()
    with torch.no_grad():
        features = torch.cat([model[:-1](pixels_of(Path(one))) for one in files])
    half, (mean, deviation) = len(files) // 2, (features.mean(0), features.std(0) + 1e-6)
    last = nn.Linear(32, CLASSES)
    optimiser = torch.optim.LBFGS(last.parameters(), max_iter=300)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        found = nn.functional.cross_entropy(last((features[:half] - mean) / deviation), labels[:half])
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        weights, fitted = last.weight / deviation, model[-1]
        assert isinstance(fitted, nn.Linear)
        fitted.weight.copy_(weights)
        fitted.bias.copy_(last.bias - weights @ mean)
        right = float((model[-1](features[half:]).argmax(1) == labels[half:]).float().mean())
    example = (torch.zeros(2, 3, size.side, size.side),)
    batch = ({0: torch.export.Dim("item")},)
    torch.export.save(torch.export.export(model.requires_grad_(False), example, dynamic_shapes=batch), file)
    return right


def pixels_of(file: Path) -> torch.Tensor:
    """One picture [1, channel, height, width] in [0, 1]."""
    return torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255).permute(2, 0, 1)[None]


@dataclass
class Run:
    """One run of the guard: its lines with the seconds at which they came, and what it took."""

    what: str
    lines: list[tuple[float, str]]
    seconds: float = 0.0
    most_mib: float = 0.0
    code: int = 0

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def known(self) -> int:
        """The items that an earlier reading knew."""
        found = KNOWN.search(re.sub(r"\s+", " ", self.text))
        return int(found[1].replace(",", "")) if found else 0

    def row(self) -> tuple[str, ...]:
        first = f"{self.lines[0][0]:.1f} s" if self.lines else "none"
        return (
            self.what,
            f"{self.seconds:.0f} s",
            first,
            f"{self.most_mib:.0f} MiB",
            f"{self.known:,}",
            str(self.code),
        )


def family(process: int) -> Iterator[int]:
    """A process and all its children."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from family(int(child))


def run(what: str, arguments: Sequence[object], setting: str, kill_when: Callable[[], bool] = lambda: False) -> Run:
    """Run the guard; `kill_when` is asked ten times a second, and SIGKILL ends the run at its first yes."""
    print(f"\n== {what}: guard {' '.join(map(str, arguments))}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", setting + COMMAND, *map(str, arguments)]
    began, over, result = time.monotonic(), threading.Event(), Run(what, [])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as guard:

        def watch() -> None:
            ticks = 0
            while not over.wait(0.02):
                ticks += 1
                try:
                    result.most_mib = max(result.most_mib, sum(map(resident_mib, family(guard.pid))))
                except OSError:
                    continue  # a child has just ended
                if ticks % 5 == 0 and kill_when():
                    guard.send_signal(signal.SIGKILL)
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert guard.stdout is not None
        for line in guard.stdout:
            result.lines.append((time.monotonic() - began, line.rstrip()))
            print(f"{result.lines[-1][0]:7.1f} {line}", end="", flush=True)
        over.set()
        watcher.join()
    result.seconds, result.code = time.monotonic() - began, guard.returncode
    return result


def prepare(folder: Path, size: Size, pictures: Path | None) -> None:
    """Make data and model, unless they are there."""
    data, made = folder / "data", folder / "made"
    if not made.exists():
        began = time.monotonic()
        write_crops(data, size, originals(size, pictures))
        stored = sum(file.stat().st_size for file in data.rglob("*.jpg"))
        right = write_model(folder / "model.pt2", data, size)
        made.touch()
        print(
            f"{size.items:,} JPEGs, {stored / 2**30:.2f} GiB, in {time.monotonic() - began:.0f} s; right on {right:.0%}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one unless given")
    parser.add_argument("--pictures", type=Path, help="pictures to crop; generated ones unless given")
    parser.add_argument("--crops", type=int, help="of each picture, where fewer than all are wanted")
    parser.add_argument("--only", choices=("data", "check", "train"))
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    size = replace(size, crops=options.crops or size.crops)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder, size, options.pictures)
        given = ("--model", folder / "model.pt2", "--data", folder / "data", "--preset", "fast", *size.asked)
        out = folder / "bundle"
        start = partial(run, setting=size.setting)
        runs = []
        if options.only in (None, "check"):
            runs.append(start("check", ["check", *given, "--out", out]))
        if options.only in (None, "train"):
            training = ["train", *given, *size.report, "--out", out]
            crafted = out.with_name("bundle.work") / "crafted"
            runs.append(start("train, killed", training, kill_when=lambda: shards(crafted) >= 2))
            runs.append(start("train, resumed", training))
            print("\nreport.json is there" if (out / "report.json").is_file() else "\nno bundle was written")
    print("\n" + table(["run", "took", "first line", "peak", "known before", "exit"], [one.row() for one in runs]))
    return judged(runs, size)


def shards(crafted: Path) -> int:
    """The number of shards that have been crafted."""
    return len(list(crafted.glob("*.npz")))


def judged(runs: Sequence[Run], size: Size) -> int:
    """0 where everything was as it must be; what was not is printed."""
    wrong = []
    for one in runs:
        wrong += [f"{one.what}: the first line came late"] * (one.lines[0][0] > MAX_FIRST_LINE_S)
        wrong += [f"{one.what}: exit code {one.code}"] * (one.code != (-signal.SIGKILL if "killed" in one.what else 0))
        wrong += [f"{one.what}: {size.items - one.known:,} items were read twice"] * (
            one.what != "check" and one.known < size.items
        )
        if one.what == "check":
            wrong += [f"check: {one.seconds:.0f} s"] * (one.seconds > MAX_CHECK_S)
            wrong += [f"check: {one.most_mib:.0f} MiB"] * (one.most_mib > MAX_RSS_MIB)
    print("\n".join(wrong) or "everything was as it must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
