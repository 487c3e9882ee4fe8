"""Strategies for graphs of one operator with weights or of one pool, and for those that resize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.offline.model.onnx_import.drawn_graphs import Drawn, Writer

Drawing = Callable[[Any], Drawn]
AUTOMATIC = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def window(writer: Writer, kernel: list[int]) -> dict[str, Any]:
    """Attributes of a window that slides: each given or left out, padding by number or by name."""
    given: dict[str, Any] = {
        "strides": writer.one_of(None, [writer.integer(1, 3) for _ in kernel]),
        "dilations": writer.one_of(None, [writer.integer(1, 2) for _ in kernel]),
    }
    automatic = writer.one_of(None, None, None, *AUTOMATIC)
    if automatic in (None, "NOTSET"):
        before, after = ([writer.integer(0, min(2, length - 1)) for length in kernel] for _ in range(2))
        pads = [*before, *before] if writer.flag() else [*before, *after]
        given["pads"] = writer.one_of(None, pads, pads)
    return {**given, "auto_pad": automatic}


def image(writer: Writer, *more_axes: int) -> tuple[str, tuple[int, ...]]:
    """An image, or the input as [item, channel, ...] with another number of axes behind; and its sizes."""
    count = writer.one_of(2, 2, 1, *more_axes)
    if count == 2:
        return "input", writer.shape
    sizes = (writer.shape[0], *(writer.integer(1, 4 if count > 2 else 8) for _ in range(count)))
    return writer.inner(*sizes), sizes


def kernel_of(writer: Writer, sizes: tuple[int, ...]) -> list[int]:
    return [writer.integer(1, min(3, size)) for size in sizes[1:]]


def convolution(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), opsets=(11, 20))
    given, sizes = image(writer)
    channels = sizes[0]
    groups = writer.one_of(*[count for count in range(1, channels + 1) if channels % count == 0])
    outputs, kernel = groups * writer.integer(1, 3), kernel_of(writer, sizes)
    weight = writer.numbers(outputs, channels // groups, *kernel)
    bias = writer.numbers(outputs) if writer.flag() else None
    named = {"group": writer.one_of(groups, groups if groups > 1 else None)}
    return writer.end(writer.add("Conv", [given, weight, bias], **window(writer, kernel), **named))


def transposed(draw: Any) -> Drawn:
    """A transposed convolution: padding by number, by name or by the size of the result."""
    writer = Writer.begin(draw, ranks=(3,), opsets=(11, 20))
    given, sizes = image(writer)
    groups = writer.one_of(*[count for count in range(1, sizes[0] + 1) if sizes[0] % count == 0])
    outputs, kernel = writer.integer(1, 3), kernel_of(writer, sizes)
    strides, dilations = ([writer.integer(1, 3) for _ in kernel] for _ in range(2))
    weight = writer.numbers(sizes[0], outputs, *kernel)
    bias = writer.numbers(groups * outputs) if writer.flag() else None
    reach = [(length - 1) * wide + 1 for length, wide in zip(kernel, dilations, strict=True)]
    named: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    match writer.one_of("pads", "pads", "more", "shape", "automatic"):
        case "automatic":
            named["auto_pad"] = writer.one_of(*AUTOMATIC)
        case "pads":
            named["pads"] = [writer.integer(0, min(1, length - 1)) for length in (*kernel, *kernel)]
        case "more":
            named["output_padding"] = [writer.integer(0, step - 1) for step in strides]
        case "shape":
            full = [(size - 1) * step + far for size, step, far in zip(sizes[1:], strides, reach, strict=True)]
            named["output_shape"] = [
                size - writer.integer(0, min(2, far - 1)) for size, far in zip(full, reach, strict=True)
            ]
    return writer.end(writer.add("ConvTranspose", [given, weight, bias], **named))


def added_windows(draw: Any) -> Drawn:
    """Windows of an image, each at its own place of another one."""
    writer = Writer.begin(draw, ranks=(3,), opsets=(18, 20))
    kernel, strides, dilations = ([writer.integer(1, 3) for _ in range(2)] for _ in range(3))
    counts = [writer.integer(1, 3) for _ in range(2)]
    pads = [writer.integer(0, 1) for _ in range(4)]
    sizes = [
        (count - 1) * step + (length - 1) * wide + 1
        for count, step, length, wide in zip(counts, strides, kernel, dilations, strict=True)
    ]
    pads = [min(pads[place], (sizes[place % 2] - 1) // 2) for place in range(4)]
    image_sizes = [size - pads[axis] - pads[axis + 2] for axis, size in enumerate(sizes)]
    columns = writer.inner(writer.integer(1, 2) * kernel[0] * kernel[1], counts[0] * counts[1])
    operands = [columns, writer.whole(*image_sizes), writer.whole(*kernel)]
    return writer.end(writer.add("Col2Im", operands, strides=strides, dilations=dilations, pads=pads))


def pool(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, ranks=(3,), opsets=(11, 12, 19, 22))
        image_given, sizes = image(writer, *([3] if kind == "AveragePool" else []))
        kernel = kernel_of(writer, sizes)
        kernel = [kernel[0], 1, 1] if len(kernel) == 3 else kernel  # as torch writes local response normalisation
        given = {**window(writer, kernel), "ceil_mode": writer.one_of(None, 0, 1)}
        if len(kernel) == 3 and given["strides"]:
            given["strides"] = [given["strides"][0], 1, writer.one_of(1, 1, 1, 2)]
        if kind == "AveragePool":
            given["count_include_pad"] = writer.one_of(None, 0, 1)
            if writer.opset < 19:
                del given["dilations"]
        return writer.end(writer.add(kind, [image_given], kernel_shape=kernel, **given))

    return drawn


def global_pool(kind: str) -> Drawing:
    def drawn(draw: Any) -> Drawn:
        writer = Writer.begin(draw, ranks=(3,))
        given, _ = image(writer, 3)
        return writer.end(writer.add(kind, [given]))

    return drawn


def response_norm(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,))
    given = {name: writer.one_of(None, writer.real(0.125, 2)) for name in ("alpha", "beta", "bias")}
    return writer.end(writer.add("LRN", ["input"], size=writer.one_of(1, 3, 3, 5, 7, 2), **given))


def resize(draw: Any) -> Drawn:
    """Resize by factors or to sizes, of all axes or of some; the settings that torch has come more often."""
    writer = Writer.begin(draw, ranks=(3,), opsets=(10, 11, 13, 18, 19), size=8)
    given = resize_settings(writer)
    region = writer.constant(np.empty(0, np.float32)) if writer.opset in (11, 12) else None
    axes = writer.one_of(None, None, [2, 3], [3, 2], [2], [-2, -1]) if writer.opset >= 18 else None
    changed = [axis % 4 for axis in axes or (0, 1, 2, 3)]
    if writer.opset > 10 and axes and writer.flag():
        none = writer.constant(np.empty(0, np.float32)) if writer.opset < 13 else None
        sizes = writer.whole(*(writer.integer(1, 16) for _ in changed))
        keep = writer.one_of(None, None, None, "stretch", "not_larger", "not_smaller")
        given["keep_aspect_ratio_policy"] = keep
        return writer.end(writer.add("Resize", ["input", region, none, sizes], axes=axes, **given))
    outer = writer.one_of(1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
    factors = [1.0, outer, *(writer.one_of(2.0, 3.0, 1.0, 1.5, 0.5, 1.4) for _ in "hw")]
    scales = writer.constant(np.asarray([factors[axis] for axis in changed], np.float32))
    operands = ["input", scales] if writer.opset == 10 else ["input", region, scales]
    return writer.end(writer.add("Resize", operands, axes=axes, **given))


def resize_settings(writer: Writer) -> dict[str, Any]:
    mode = writer.one_of("nearest", "linear", "cubic" if writer.opset > 10 else "nearest")
    given = {"mode": mode}
    if writer.opset == 10:
        return given
    common = (None, None, "align_corners", "asymmetric")
    given["coordinate_transformation_mode"] = writer.one_of(*common, *PLACES[: 4 if writer.opset < 19 else 5])
    if mode == "nearest":
        given["nearest_mode"] = writer.one_of(None, None, "floor", "floor", *ROUNDINGS)
    if mode == "cubic":
        given["cubic_coeff_a"] = writer.one_of(None, None, None, -0.5)
        given["exclude_outside"] = writer.one_of(None, None, None, 1)
    if mode != "nearest" and writer.opset >= 18:
        given["antialias"] = writer.one_of(None, None, None, 0, 1)
    return given


def upsample(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), opsets=(7, 9))
    factors = [1.0, 1.0, *(writer.one_of(1.0, 1.4, 1.5, 2.0, 3.0) for _ in range(2))]
    mode = writer.one_of(None, "nearest", "linear")
    if writer.opset < 9:
        return writer.end(writer.add("Upsample", ["input"], scales=factors, mode=mode))
    return writer.end(writer.add("Upsample", ["input", writer.constant(np.asarray(factors, np.float32))], mode=mode))


def gemm(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(1,), opsets=(9, 11, 13))
    features, outputs = writer.shape[0], writer.integer(1, 5)
    factors = {name: writer.one_of(None, writer.real(-2, 2)) for name in ("alpha", "beta")}
    if writer.integer(0, 3) == 0:  # the input is the matrix on the right
        return writer.end(writer.add("Gemm", [writer.numbers(outputs, features), "input", writer.numbers(1)], transB=1))
    turned = writer.one_of(None, 0, 1)
    weight = writer.numbers(*((outputs, features) if turned else (features, outputs)))
    shift = writer.one_of(None, (outputs,), (1, outputs), (1,), (), (1, 1))
    if shift is None and writer.opset < 11:
        shift = (outputs,)
    operands = ["input", weight, None if shift is None else writer.numbers(*shift)]
    return writer.end(writer.add("Gemm", operands, transB=turned, **factors))


def matrix_product(draw: Any) -> Drawn:
    writer = Writer.begin(draw)
    inner, outer = writer.shape[-1], writer.integer(1, 4)
    if writer.integer(0, 2) == 0 and len(writer.shape) == 3:
        inner = writer.shape[-2]
        stack = writer.one_of((), (1,), (writer.shape[0],), (1, writer.shape[0]))
        return writer.end(writer.add("MatMul", [writer.numbers(*stack, outer, inner), "input"]))
    sizes = writer.one_of((inner,), (inner, outer), (inner, outer), (1, inner, outer))
    if len(writer.shape) == 3 and writer.flag():
        sizes = (writer.shape[0], inner, outer)
    return writer.end(writer.add("MatMul", ["input", writer.numbers(*sizes)]))


def einsum(draw: Any) -> Drawn:
    """Draw a sum over any letters but the batch's, of the input with itself, a constant, or alone."""
    writer = Writer.begin(draw, opsets=(12, 13, 20), size=4)
    own = "nchw"[: writer.rank]
    terms, operands = [own], ["input"]
    if writer.integer(0, 3) == 0:
        terms, operands = [own, own], ["input", "input"]
    elif writer.integer(0, 2):
        other = [*draw(st.lists(st.sampled_from(own[1:]), unique=True)), *writer.one_of((), ("d",))] or ["d"]
        sizes = dict(zip(own[1:], writer.shape, strict=True)) | {"d": writer.integer(1, 3)}
        terms.append("".join(other))
        operands.append(writer.numbers(*(sizes[letter] for letter in other)))
        if writer.flag():
            terms, operands = terms[::-1], operands[::-1]
    rest = sorted({letter for term in terms for letter in term} - {"n"})
    result = "n" + "".join(draw(st.lists(st.sampled_from(rest), unique=True)))
    return writer.end(writer.add("Einsum", operands, equation=f"{','.join(terms)}->{result}"))


def batch_norm(draw: Any) -> Drawn:
    writer = Writer.begin(draw, opsets=(9, 14, 15))
    parts = [writer.numbers(writer.shape[0], positive=place in (0, 3)) for place in range(4)]
    training = writer.one_of(None, 0) if writer.opset >= 14 else None
    return writer.end(
        writer.add("BatchNormalization", ["input", *parts], epsilon=writer.one_of(None, 1e-3), training_mode=training)
    )


def normalised(writer: Writer) -> Writer:
    """Have two numbers or more to normalise: of one only its rounding is left, which a small epsilon makes large."""
    writer.shape = (*writer.shape[:-1], max(2, writer.shape[-1]))
    return writer


def layer_norm(draw: Any) -> Drawn:
    writer = normalised(Writer.begin(draw, opsets=(17, 20)))
    axis = writer.one_of(None, writer.axis())
    sizes = (1, *writer.shape)[-1 if axis is None else axis :]
    scale = writer.numbers(*sizes)
    shift = writer.numbers(*sizes) if writer.flag() else None
    return writer.end(
        writer.add("LayerNormalization", ["input", scale, shift], axis=axis, epsilon=writer.one_of(None, 1e-3))
    )


def group_norm(draw: Any) -> Drawn:
    writer = normalised(Writer.begin(draw, ranks=(3,), opsets=(18, 21)))
    channels = writer.shape[0]
    groups = writer.one_of(*[count for count in range(1, channels + 1) if channels % count == 0])
    parts = [writer.numbers(channels if writer.opset >= 21 else groups) for _ in "ab"]
    return writer.end(
        writer.add("GroupNormalization", ["input", *parts], num_groups=groups, epsilon=writer.one_of(None, 1e-3))
    )


def instance_norm(draw: Any) -> Drawn:
    writer = normalised(Writer.begin(draw, ranks=(3,)))
    parts = [writer.numbers(writer.shape[0]) for _ in "ab"]
    return writer.end(writer.add("InstanceNormalization", ["input", *parts], epsilon=writer.one_of(None, 1e-3)))


def attention(draw: Any) -> Drawn:
    writer = Writer.begin(draw, ranks=(3,), opsets=(23,), size=4)
    length = writer.shape[1]
    key = writer.add(writer.one_of("Neg", "Sigmoid"), ["input"])
    value = writer.add(writer.one_of("Identity", "Tanh"), ["input"])
    mask = writer.one_of(None, None, "real", "kept")
    if mask == "real":
        mask = writer.numbers(*draw(st.sampled_from([(length, length), (1, length), (1, 1, length, length)])))
    elif mask == "kept":
        mask = writer.constant(np.tril(np.ones((length, length), bool)))
    given = {
        "scale": writer.one_of(None, 0.5),
        "is_causal": writer.one_of(None, 0, 1),
        "softcap": writer.one_of(None, None, 2.0),
    }
    return writer.end(writer.add("Attention", ["input", key, value, mask], **given))


DRAWINGS: dict[str, Drawing] = {
    "Attention": attention,
    "AveragePool": pool("AveragePool"),
    "BatchNormalization": batch_norm,
    "Col2Im": added_windows,
    "Conv": convolution,
    "ConvTranspose": transposed,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool("GlobalAveragePool"),
    "GlobalMaxPool": global_pool("GlobalMaxPool"),
    "GroupNormalization": group_norm,
    "Einsum": einsum,
    "InstanceNormalization": instance_norm,
    "LRN": response_norm,
    "LayerNormalization": layer_norm,
    "MatMul": matrix_product,
    "MaxPool": pool("MaxPool"),
    "Resize": resize,
    "Upsample": upsample,
}
