"""Opens what `--answers` names: an .onnx file, a function, or a model of a running server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from guard.errors import ConfigError, ModelError
from guard.offline.closed.callable_answers import callable_answers
from guard.offline.closed.closed_model import ClosedModel
from guard.offline.closed.file_answers import file_answers
from guard.offline.closed.server_answers import server_answers

ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})")


@dataclass(frozen=True)
class AnswersWish:
    """The user's words on a closed model: where it answers, and by which names."""

    reference: str  # an .onnx file, module:function, or HOST:PORT
    name: str | None = None  # of a server's model, NAME[:VERSION]
    input_name: str | None = None
    output_name: str | None = None
    output: str = "logits"
    labels: tuple[str, ...] = ()  # of the classes, where they are words

    @property
    def is_server(self) -> bool:
        """Whether the reference is an address: a host, a colon, a number."""
        return ADDRESS.fullmatch(self.reference) is not None


def open_answers(wish: AnswersWish) -> ClosedModel:
    """Open a closed model.

    Raises:
        ConfigError: the server's model is not named, or something else has a name.
        ModelError: it cannot be found, loaded, reached or understood.
    """
    if wish.is_server:
        if not wish.name:
            raise ConfigError(f"--answers {wish.reference} is a server; name its model with --name NAME[:VERSION]")
        return server_answers(
            wish.reference,
            wish.name,
            input_name=wish.input_name,
            output_name=wish.output_name,
            names=wish.labels,
        )
    if wish.name:
        raise ConfigError(
            f"--name {wish.name} names the model of a server, and --answers {wish.reference} is none; wanted HOST:PORT "
            "there, or no --name (--serves says which model clients ask for)"
        )
    if wish.reference.endswith(".onnx"):
        names = {"input_name": wish.input_name, "output_name": wish.output_name}
        return file_answers(Path(wish.reference), **names, wanted=wish.output)
    if ":" in wish.reference and not Path(wish.reference).exists():
        return callable_answers(wish.reference)
    raise ModelError(
        f"--answers {wish.reference!r} is nothing that answers; wanted an .onnx file (skl2onnx, onnxmltools), "
        "module:function, or HOST:PORT of a server with --name: a pickled model is put behind one of these"
    )
