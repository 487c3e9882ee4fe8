"""The manifest of a bundle: the model that it guards, its programs, detectors and repairs, and where it came from.

Rule: the fields here are those of `manifest.json`, which `guard/serve/README.md` lists; a field that comes later has a
default, so that bundles of earlier formats still open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from guard.axes import BY_COUNT, Axes, axes_of, in_layout
from guard.errors import BundleError
from guard.features import Feature, features_from
from guard.value_box import ValueBox

FORMAT_VERSION = 5
DATATYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),  # on the wire alone: programs compute in float32
    "UINT8": np.dtype("u1"),
}


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
    """An ONNX graph of the cascade: wire input -> `logits` [item, class], `scores` [item, own detector].

    What explains them is there where the detectors read it: `gradient` [item, channels first] of the input in [0, 1],
    and `opinions` [item, opinion, class], the logits of further answers.
    """

    name: str
    file: str
    detectors: tuple[str, ...]
    rows: int  # variant rows an item, beside the item itself
    backwards: int
    opset: int
    forwards: float = 0.0  # of the model, by multiply-adds: what second networks cost an item
    opinions: tuple[str, ...] = ()  # their names; none in bundles of format 4 and before

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
            programs=tuple(map(program_spec, raw["programs"])),
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


def program_spec(raw: Mapping[str, Any]) -> ProgramSpec:
    """Read one of the manifest's programs."""
    return ProgramSpec(
        **{**raw, "detectors": tuple(raw["detectors"]), "opinions": tuple(map(str, raw.get("opinions", ())))}
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
