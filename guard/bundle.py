"""A bundle: the directory that passes from offline to serving, and the only thing that does.

Rule 1: a bundle is written whole or not at all, and never changed.
Rule 2: what is not named in the manifest with its SHA-256 is not part of it; what is named and differs is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.axes import BY_COUNT, Axes, axes_of, in_layout
from guard.calibration import Calibration
from guard.errors import BundleError
from guard.features import Feature, features_from
from guard.value_box import ValueBox

FORMAT_VERSION = 4
READ_VERSIONS = (2, 3, FORMAT_VERSION)  # 2 knows no features of tables, 3 no opinions of repairs
MANIFEST, WEIGHTS, CALIBRATION = "manifest.json", "weights.bin", "calibration.npz"
ANSWER_CALIBRATION = "answer.npz"  # of a closed model's answers, for a guard that forwards before its verdict
DATATYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),  # on the wire alone: programs compute in float32
    "UINT8": np.dtype("u1"),
}

# What reading a damaged archive may raise; an unknown compression or a password is a RuntimeError.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class InputSpec:
    """The wire input of the protected model; one item, without the batch axis.

    Everything but the wire itself works on items with channels first, whatever the layout.
    """

    name: str
    datatype: str  # Open Inference Protocol name, a key of DATATYPES
    shape: tuple[int, ...]  # [channel, height, width], [channel, time] or [feature]
    low: tuple[float, ...]  # value box a channel (or one for all), in wire values
    high: tuple[float, ...]
    grid: int | None  # steps between low and high that the data sits on; None where it is continuous
    layout: str = "NCHW"  # order of the axes on the wire, the batch in front: one of `axes.LAYOUTS`
    features: tuple[Feature, ...] = ()  # of a table, in the order of the wire; none where they were never named

    @property
    def axes(self) -> Axes:
        """The axes of one item, and the words of its kind."""
        return axes_of(self.shape)

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The shape of one item in the order of axes in which it travels."""
        return in_layout(self.shape, self.layout)

    @property
    def dtype(self) -> np.dtype[Any]:
        return DATATYPES[self.datatype]

    @property
    def box(self) -> ValueBox:
        """The conversion between wire values and [0, 1]."""
        return ValueBox(self.low, self.high, len(self.shape), self.layout, self.dtype, self.features)


@dataclass(frozen=True)
class OutputSpec:
    """The output of the model that holds its prediction, and the kind of values in it.

    Inside the guard every model has logits [item, class]; `single` tells that the wire has one number an item.
    """

    name: str
    kind: str  # logits | probabilities | label
    classes: int
    labels: tuple[str, ...] = ()
    single: bool = False  # of two classes: the probability of class 1, or its logit
    numbers: tuple[int, ...] = ()  # the labels on the wire by class, where they are numbers that do not run from 0

    @property
    def columns(self) -> int:
        """The numbers that an item has on the wire, where they are no labels."""
        return 1 if self.single else self.classes

    @property
    def in_words(self) -> str:
        """What the output holds, as reports and refusals say it."""
        if self.single:
            return "one probability, of class 1 of 2" if self.kind == "probabilities" else "one logit, of class 1 of 2"
        return f"{self.kind} of {self.classes} classes"


@dataclass(frozen=True)
class ModelSpec:
    """The model that the bundle was made for; `fingerprint` changes when a weight does."""

    name: str
    version: str  # empty: any
    fingerprint: str
    input: InputSpec
    output: OutputSpec


@dataclass(frozen=True)
class ProgramSpec:
    """An ONNX graph of the cascade: wire input -> `logits` [item, class], `scores` [item, own detector]."""

    name: str
    file: str
    detectors: tuple[str, ...]
    rows: int  # variant rows an item, beside the item itself
    backwards: int
    opset: int
    forwards: float = 0.0  # of the model, by multiply-adds: what second networks cost an item

    @property
    def floor(self) -> float:
        """The least that the program can cost, in forwards of the model: 1 + backwards + rows + second networks."""
        return 1 + self.backwards + self.rows + self.forwards

    @property
    def rows_at_once(self) -> int:
        """Rows that an item takes on the device: itself, its variants, and second networks as whole rows."""
        return 1 + self.rows + math.ceil(self.forwards)


@dataclass(frozen=True)
class NeedSpec:
    """A kind of evidence, as it prints, and the pass that yields it: plain, rows, backward or second (a network)."""

    expression: str
    rides: str


@dataclass(frozen=True)
class DetectorSpec:
    """A detector as the recipe wrote it, and the evidence that it needs."""

    name: str
    expression: str
    needs: tuple[NeedSpec, ...]


@dataclass(frozen=True)
class RepairSpec:
    """A denoiser as an ONNX graph of its own: wire input -> `cleaned`, and `classes` [item, opinion] of what it made.

    `cleaned` has the shape and type of the input. The opinions are the model's on what was cleaned once, the model's on
    what was cleaned twice, and each second network's on what was cleaned once.
    """

    name: str
    file: str
    expression: str
    opinions: tuple[str, ...] = ()  # none in bundles of format 3 and before, which cannot repair any more


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`, field by field."""

    model: ModelSpec
    programs: tuple[ProgramSpec, ...]
    detectors: tuple[DetectorSpec, ...]
    repairs: tuple[RepairSpec, ...]
    reject_rate: float
    flag_rate: float
    recipe: Mapping[str, Any]
    seed: int
    made_by: Mapping[str, str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT_VERSION

    @property
    def measured_disagreement(self) -> float:
        """The share of clean items that served model and bundle named differently in training; 0 where they are one."""
        if student := mapping(self.provenance.get("student", {})):
            return 1.0 - float(student["agreed"])
        return float(mapping(self.provenance.get("served", {})).get("changed", 0.0))

    def to_json(self, files: Mapping[str, str]) -> str:
        return json.dumps({**asdict(self), "files": dict(sorted(files.items()))}, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Manifest:
        model = raw["model"]
        inputs, output = model["input"], model["output"]
        if len(inputs["shape"]) not in BY_COUNT:
            raise BundleError(f"the manifest's input has items of shape {inputs['shape']}, which no kind of input has")
        spec = InputSpec(
            inputs["name"],
            inputs["datatype"],
            tuple(inputs["shape"]),
            tuple(inputs["low"]),
            tuple(inputs["high"]),
            inputs["grid"],
            inputs.get("layout", axes_of(inputs["shape"]).layouts[0]),
            features_from(inputs.get("features", ())),
        )
        if spec.features and spec.shape != (len(spec.features),):
            raise BundleError(
                f"the manifest names {len(spec.features)} features for items of {list(spec.shape)} values"
            )
        if spec.layout not in spec.axes.layouts:
            raise BundleError(
                f"the manifest's input layout {spec.layout!r} is none of {', '.join(spec.axes.layouts)}, as its shape "
                f"{list(spec.shape)} travels"
            )
        if spec.datatype not in DATATYPES:
            raise BundleError(f"the manifest's input datatype {spec.datatype!r} is none of {', '.join(DATATYPES)}")
        return Manifest(
            model=ModelSpec(
                model["name"],
                model["version"],
                model["fingerprint"],
                spec,
                output_spec(output),
            ),
            programs=tuple(ProgramSpec(**{**p, "detectors": tuple(p["detectors"])}) for p in raw["programs"]),
            detectors=tuple(
                DetectorSpec(d["name"], d["expression"], tuple(NeedSpec(**need) for need in d["needs"]))
                for d in raw["detectors"]
            ),
            repairs=tuple(RepairSpec(**{**r, "opinions": tuple(r.get("opinions", ()))}) for r in raw["repairs"]),
            reject_rate=float(raw["reject_rate"]),
            flag_rate=float(raw["flag_rate"]),
            recipe=mapping(raw["recipe"]),
            seed=int(raw["seed"]),
            made_by=mapping(raw["made_by"]),
            provenance=mapping(raw["provenance"]),
            format=int(raw["format"]),
        )


def output_spec(raw: Mapping[str, Any]) -> OutputSpec:
    """Read the manifest's output; without `single` or `numbers` it is of before they were known. Raises BundleError."""
    spec = OutputSpec(
        raw["name"],
        raw["kind"],
        int(raw["classes"]),
        tuple(raw["labels"]),
        bool(raw.get("single", False)),
        tuple(map(int, raw.get("numbers", ()))),
    )
    if spec.numbers and len(spec.numbers) != spec.classes:
        raise BundleError(f"the manifest's output has {len(spec.numbers)} numbers for {spec.classes} classes")
    if spec.single and (spec.classes != 2 or spec.kind == "label"):
        raise BundleError(
            f"the manifest's output is one number an item of {spec.kind} for {spec.classes} classes; wanted a "
            "probability or a logit, of two classes"
        )
    return spec


def mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value


@dataclass(frozen=True)
class Samples:
    """A few inputs with the readings that this bundle must give for them."""

    images: NDArray[Any]  # [item, ...] wire values
    logits: NDArray[np.float32]  # [item, class]
    scores: NDArray[np.float64]  # [item, detector], every program run
    p_values: NDArray[np.float64]  # [item], as the cascade gives them


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified against its manifest."""

    path: Path
    manifest: Manifest
    digest: str  # SHA-256 of manifest.json, hence of everything

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """Open the bundle at `path` and verify every file.

        Raises:
            BundleError: `path` is no bundle or one of another format, or a file is missing, added or altered.
        """
        root = Path(path)
        file = root / MANIFEST
        if not root.is_dir():
            raise BundleError(f"{root} is not a bundle: no such directory; `guard train --out {root}` makes one")
        if not file.is_file():
            raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}")
        text = file.read_bytes()
        try:
            raw = json.loads(text)
            found = raw["format"]
            if found not in READ_VERSIONS:
                raise BundleError(
                    f"{root} has bundle format {found!r}; this version of the guard reads format "
                    f"{' and '.join(map(str, READ_VERSIONS))}; train the bundle again"
                )
            files = {str(name): str(digest) for name, digest in raw.pop("files").items()}
            manifest = Manifest.from_json(raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{file} cannot be read ({type(error).__name__}: {error}); the bundle is damaged or foreign"
            ) from error
        verify_files(root, files)
        named = [p.file for p in manifest.programs] + [r.file for r in manifest.repairs] + [CALIBRATION, "samples.npz"]
        if absent := [name for name in named if name not in files]:
            raise BundleError(f"{file} does not vouch for {', '.join(absent)}; the bundle is damaged or foreign")
        return Bundle(root, manifest, hashlib.sha256(text).hexdigest())

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of what decides on inputs: programs, weights and calibration, not the report beside them."""
        files = self.path
        return identity(
            self.manifest.programs, lambda name: file_digest(files / name) if (files / name).is_file() else None
        )

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.from_arrays(read_npz(self.path / CALIBRATION))

    @cached_property
    def samples(self) -> Samples:
        arrays = read_npz(self.path / "samples.npz")
        try:
            return Samples(arrays["images"], arrays["logits"], arrays["scores"], arrays["p_values"])
        except KeyError as error:
            raise BundleError(f"samples.npz of {self.path} lacks {error}; train the bundle again") from error

    def repair(self, name: str) -> RepairSpec:
        """Return the denoiser `name`.

        Raises:
            BundleError: it is unknown, and the message lists those that there are; or its graph does not tell whether
                a repaired answer is stable.
        """
        for spec in self.manifest.repairs:
            if spec.name == name:
                if not spec.opinions:
                    raise BundleError(
                        f"the bundle repairs by {name!r} without telling whether the repaired answer is stable; "
                        "train the bundle again"
                    )
                return spec
        have = ", ".join(spec.name for spec in self.manifest.repairs) or "none"
        raise BundleError(f"the bundle cannot repair by {name!r}; it has: {have}")


def verify_files(root: Path, files: Mapping[str, str]) -> None:
    """Raise BundleError for a missing, altered or added file; hidden files are ignored: some mounts leave theirs."""
    for file in sorted(root.iterdir()):
        if file.is_file() and file.name not in {*files, MANIFEST} and not file.name.startswith("."):
            raise BundleError(f"{file} is not named in the manifest; a bundle holds nothing else")
    for name, expected in files.items():
        file = root / plain_name(name)
        if not file.is_file():
            raise BundleError(f"{file} is missing; the bundle is incomplete")
        if (found := file_digest(file)) != expected:
            raise BundleError(f"{file} was altered: SHA-256 is {found[:12]}…, the manifest says {expected[:12]}…")


def plain_name(name: str) -> str:
    """Return `name`. Raises BundleError where it leads out of the bundle, or to its manifest."""
    if Path(name).name != name or name in (".", "..", MANIFEST):
        raise BundleError(f"{name!r} is no name of a file in a bundle: it lies elsewhere")
    return name


def identity(programs: Sequence[ProgramSpec], digest: Callable[[str], str | None]) -> str:
    """SHA-256 (hex) that tells one guard from another, whether it is in a bundle already or not.

    `digest` returns the digest of a file's content by the file's name; None where there is no such file.
    """
    files = sorted({*(program.file for program in programs), WEIGHTS, CALIBRATION, ANSWER_CALIBRATION})
    found = [(name, known) for name in files if (known := digest(name)) is not None]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz, never unpickled. Raises BundleError."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise BundleError(f"{path} cannot be read: {error}") from error


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write `files` and their manifest beside `path`, then move the whole into place.

    Raises:
        BundleError: `path` exists; a bundle is immutable.
    """
    if path.exists():
        raise BundleError(f"{path} exists, and a bundle is never changed; name another --out or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            (partial / plain_name(name)).write_bytes(content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        (partial / MANIFEST).write_text(manifest.to_json(digests), encoding="utf-8")
        partial.chmod(0o755)
        Bundle.open(partial)
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Bundle.open(path)
