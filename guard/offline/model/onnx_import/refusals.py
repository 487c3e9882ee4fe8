"""What is said of operators that cannot be taken: what they are, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.errors import ModelError
from guard.offline.model.onnx_import.graph_node import WITH_OTHERS, Node
from guard.offline.model.onnx_import.sequences import KINDS as SEQUENCES

ML = "ai.onnx.ml."


@dataclass(frozen=True)
class Unfit:
    """Why an operator is refused, and a remedy that fits its kind."""

    why: str
    remedy: str


FOREST = Unfit(
    "a forest of decision trees, which has no gradient",
    "let a student be distilled from its answers: --answers FILE in the place of --model FILE",
)
KERNEL = Unfit(
    "a support vector machine, whose kernel is not written out",
    "let a student be distilled from its answers: --answers FILE in the place of --model FILE",
)
CATEGORIES = Unfit(
    "a step that turns categories, words or missing values into numbers, which has no gradient",
    "give the model behind that step, from its vectors of floats [item, feature]",
)
QUANTISED = Unfit(
    "an operator of a quantised model, whose steps have no gradient",
    "guard the float file that it was made from: that is --model, this one --served, and how far they are "
    "apart is measured",
)
FUSED = Unfit(
    "an operator that ONNX Runtime or a vendor's optimiser put in place of several",
    "give the file from before it was optimised",
)
FLOW = Unfit(
    "control flow, which has no gradient here",
    "export the model without loops and branches: by tracing (torch.onnx.export(..., dynamo=False)), or with "
    "torch.where for a branch",
)
NO_TENSOR = Unfit(
    "works on sequences, optional values or text instead of tensors of floats",
    "export the part of the model that maps one tensor of floats to another; where torch's older exporter wrote them, "
    "export it with torch.onnx.export(..., dynamo=True)",
)
RANDOM = Unfit(
    "draws random numbers, so that the same input gets another answer each time",
    "export the model in evaluation mode, without sampling",
)

CLOSED = (FOREST, KERNEL)  # models as a whole, of which answers are all that can be had

BY_KIND: Mapping[str, Unfit] = {
    **dict.fromkeys([f"{ML}TreeEnsemble{end}" for end in ("", "Classifier", "Regressor")], FOREST),
    **dict.fromkeys([f"{ML}SVMClassifier", f"{ML}SVMRegressor"], KERNEL),
    **dict.fromkeys(
        [
            *(f"{ML}{name}" for name in ("LabelEncoder", "OneHotEncoder", "CategoryMapper", "DictVectorizer")),
            *(f"{ML}{name}" for name in ("CastMap", "FeatureVectorizer", "Imputer", "Binarizer")),
            "TfIdfVectorizer",
        ],
        CATEGORIES,
    ),
    **dict.fromkeys(
        [
            *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
            *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        ],
        QUANTISED,
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), FLOW),
    **dict.fromkeys(
        [
            *("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "LabelEncoder"),
            *("Optional", "OptionalGetElement", "OptionalHasElement"),
            *SEQUENCES,
        ],
        NO_TENSOR,
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"), RANDOM
    ),
}
QUANTISED_WORDS = ("QLinear", "Quantize", "QAttention", "Integer", "NBits", "QGemm")


def refusal_of(node: Node) -> Unfit | None:
    """Return what is to be said of an operator that is known not to fit."""
    domain, _, name = node.kind.rpartition(".")
    if found := BY_KIND.get(node.kind):
        return found
    if domain and any(word in name for word in QUANTISED_WORDS):
        return QUANTISED
    if domain in ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "com.nvidia"):
        return FUSED
    return None


def refuse_closed(file: Path, nodes: Sequence[Node]) -> None:
    """Raise ModelError where a file holds a forest or a kernel machine, which can be asked and not opened."""
    for node in nodes:
        found = refusal_of(node)
        if found is not None and found in CLOSED:
            raise node.refuse(
                found.why,
                f"let a student be distilled from its answers: --answers {file} in the place of --model {file}",
            )


def missing(node: Node, known: int) -> ModelError:
    """Return the error for an operator that is not in the table of so many."""
    if found := refusal_of(node):
        return node.refuse(found.why, found.remedy)
    domain = node.kind.rpartition(".")[0]
    if domain:
        return node.refuse(
            f"an operator of the domain {domain!r}, which ONNX does not define",
            "export that part with operators of ONNX's own",
        )
    return node.refuse(
        f"an operator that the importer does not know; it knows {known}",
        f"{WITH_OTHERS}, or let a student be distilled from the model's answers: --answers FILE in the place of "
        "--model FILE",
    )
