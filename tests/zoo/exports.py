"""Files made of a network: which exporter wrote one, and for how many items and which order of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.onnx_files import quiet

DEFAULT, LEGACY, PROGRAM = "default", "legacy", "pt2"
ONE, ANY, LAST = "fixed 1", "dynamic", "NHWC"


@dataclass(frozen=True)
class Form:
    """An exporter, and the form of the batch: one item, any number, any number with channels last."""

    exporter: str
    batch: str

    def __str__(self) -> str:
        return f"{self.exporter}, {self.batch}"

    @property
    def suffix(self) -> str:
        return ".pt2" if self.exporter == PROGRAM else ".onnx"


FORMS = (*(Form(exporter, batch) for exporter in (DEFAULT, LEGACY) for batch in (ONE, ANY, LAST)), Form(PROGRAM, ANY))


class FromLast(nn.Module):
    """A network behind the transposition that channels-last inputs take."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.permute(0, 3, 1, 2))
        return logits


def write(network: nn.Module, shape: tuple[int, ...], form: Form, file: Path) -> None:
    """Export a network whose items are [channel, height, width]; input `input`, output `logits`."""
    example = torch.rand(1 if form.batch == ONE else 2, *shape, generator=torch.Generator().manual_seed(0))
    if form.batch == LAST:
        example, network = example.permute(0, 2, 3, 1).contiguous(), FromLast(network).eval()
    with quiet():
        WRITERS[form.exporter](network, example, file, free=form.batch != ONE)


def write_default(network: nn.Module, example: Tensor, file: Path, *, free: bool) -> None:
    shapes = ({0: torch.export.Dim("item")},) if free else None
    torch.onnx.export(network, (example,), str(file), dynamo=True, dynamic_shapes=shapes, external_data=False, **NAMES)


def write_legacy(network: nn.Module, example: Tensor, file: Path, *, free: bool) -> None:
    axes = {"input": {0: "item"}, "logits": {0: "item"}} if free else None
    torch.onnx.export(network, (example,), str(file), dynamo=False, dynamic_axes=axes, **NAMES)


def write_program(network: nn.Module, example: Tensor, file: Path, *, free: bool) -> None:
    shapes = ({0: torch.export.Dim("item")},) if free else None
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), file)


NAMES: Mapping[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False}
WRITERS: Mapping[str, Callable[..., None]] = {DEFAULT: write_default, LEGACY: write_legacy, PROGRAM: write_program}
