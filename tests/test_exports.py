"""A module that was written once is found again, and one that differs in anything is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard.offline.model.onnx_export.export import lower
from tests.exports import RememberedExport, digest


class Scaled(nn.Module):
    """Values times a factor, plus a number."""

    def __init__(self, factor: float, added: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor([factor]))
        self.added = added

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor]:
        return (values * self.factor + self.added,)


def traced(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("item")},))


OPTIONS = {"input_names": ["values"], "opset_version": 20}
EXAMPLE = torch.zeros(3, 4)


def test_the_same_module_has_the_same_name_wherever_it_was_made() -> None:
    assert digest(traced(Scaled(2.0), EXAMPLE), OPTIONS) == digest(traced(Scaled(2.0), EXAMPLE), OPTIONS)


@pytest.mark.parametrize(
    ("module", "example", "options"),
    [
        pytest.param(Scaled(2.0 + 1e-6), EXAMPLE, OPTIONS, id="a buffer's number"),
        pytest.param(Scaled(2.0, added=0.25), EXAMPLE, OPTIONS, id="a number among the operators"),
        pytest.param(Scaled(2.0), torch.zeros(3, 5), OPTIONS, id="a shape"),
        pytest.param(Scaled(2.0).double(), EXAMPLE.double(), OPTIONS, id="a type"),
        pytest.param(Scaled(2.0), EXAMPLE, {**OPTIONS, "input_names": ["other"]}, id="a name"),
        pytest.param(Scaled(2.0), EXAMPLE, {**OPTIONS, "opset_version": 18}, id="the operators' version"),
    ],
)
def test_whatever_differs_has_another_name(module: nn.Module, example: torch.Tensor, options: dict[str, Any]) -> None:
    assert digest(traced(module, example), options) != digest(traced(Scaled(2.0), EXAMPLE), OPTIONS)


def test_what_is_found_again_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, real = [], torch.onnx.export

    def counted(*arguments: Any, **options: Any) -> Any:
        written.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", RememberedExport(tmp_path, counted))
    names: dict[str, Any] = {"input_name": "values", "output_names": ("scaled",)}
    first, second = (lower(Scaled(3.0), EXAMPLE, **names) for _ in range(2))
    assert len(written) == 1
    assert first.SerializeToString() == second.SerializeToString()
    lower(Scaled(4.0), EXAMPLE, **names)
    assert len(written) == 2
