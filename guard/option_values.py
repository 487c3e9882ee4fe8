"""What the text of a command-line option means: numbers, a device, a value range, columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.errors import ConfigError


def column_choice(label: str | None, drop: Sequence[str] | None) -> Any:
    """Return what was said of a table's columns, or None where nothing was."""
    from guard.columns import ColumnChoice

    return ColumnChoice(label, tuple(drop or ())) if label is not None or drop else None


def device_name(text: str) -> Any:
    """Return a device's name as it is. Raises ConfigError where it is unknown."""
    if text not in ("cpu", "cuda"):
        raise ConfigError(f"--device {text!r}; wanted cpu or cuda")
    return text


def numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: wanted numbers separated by commas") from error


def value_box(
    value_range: tuple[float, float], mean: str | None, std: str | None, *, prefix: str = ""
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The wire values of black and white per channel or feature. Raises ConfigError."""
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std go together; give both or neither")
    if mean is None or std is None:
        low, high = value_range
        if low >= high:
            raise ConfigError(f"--range {low:g} {high:g}: the first must be below the second")
        return (low,), (high,)
    means, deviations = numbers(mean, f"--{prefix}mean"), numbers(std, f"--{prefix}std")
    if len(means) != len(deviations) or min(deviations) <= 0:
        raise ConfigError(
            f"--{prefix}mean {mean} and --{prefix}std {std}: wanted as many of each, deviations above zero"
        )
    pairs = list(zip(means, deviations, strict=True))
    return tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs)


def second_boxes(
    ranges: Sequence[str] | None, means: Sequence[str] | None, stds: Sequence[str] | None
) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """The wire values of black and white of each second network that was given any. Raises ConfigError."""
    if ranges and (means or stds):
        raise ConfigError("--second-range goes without --second-mean and --second-std; give the one or the others")
    if len(means or ()) != len(stds or ()):
        raise ConfigError(
            f"--second-mean was given {len(means or ())} times, --second-std {len(stds or ())} times; they go together"
        )
    found = []
    for text in ranges or ():
        bounds = numbers(text, "--second-range")
        if len(bounds) != 2 or bounds[0] >= bounds[1]:
            raise ConfigError(f"--second-range {text!r}: wanted LOW,HIGH, such as 0,255, the first below the second")
        found.append(((bounds[0],), (bounds[1],)))
    return (
        *found,
        *(value_box((0.0, 1.0), *pair, prefix="second-") for pair in zip(means or (), stds or (), strict=True)),
    )
