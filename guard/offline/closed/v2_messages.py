"""Messages of the Open Inference Protocol, as far as asking a server takes them, in a descriptor pool of their own.

Rule 1: field numbers are those of `proto/inference.proto`; a test compares every message with the serving side's.
The serving tower has the generated classes; the two towers share no code, and a client needs a dozen fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "guard.closed"  # a name of its own: on the wire a message's name is not sent
SERVICE = "/inference.GRPCInferenceService"
KIND = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "bool": KIND.TYPE_BOOL,
    "int32": KIND.TYPE_INT32,
    "int64": KIND.TYPE_INT64,
    "uint32": KIND.TYPE_UINT32,
    "uint64": KIND.TYPE_UINT64,
    "float": KIND.TYPE_FLOAT,
    "double": KIND.TYPE_DOUBLE,
    "string": KIND.TYPE_STRING,
    "bytes": KIND.TYPE_BYTES,
}
Fields = Mapping[str, tuple[int, str]]  # name -> number, and type; a star behind it: repeated

MESSAGES: Mapping[str, Fields] = {
    "Contents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
    "Tensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "contents": (5, "Contents"),
    },
    "Named": {"name": (1, "string")},
    "InferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "inputs": (5, "Tensor*"),
        "outputs": (6, "Named*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "InferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "outputs": (5, "Tensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "Model": {"name": (1, "string"), "version": (2, "string")},
    "Metadata": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "inputs": (4, "Tensor*"),
        "outputs": (5, "Tensor*"),
    },
}


def message_classes() -> dict[str, Any]:
    """Build the classes of all messages, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="guard/closed.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = KIND.LABEL_REPEATED if kind.endswith("*") else KIND.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            if (bare := kind.rstrip("*")) in SCALARS:
                made.type = SCALARS[bare]
            else:
                made.type, made.type_name = KIND.TYPE_MESSAGE, f".{PACKAGE}.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}
