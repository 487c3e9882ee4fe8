"""The protected model as an fx graph from unit-space items to logits, with named taps.

Rule 1: weights are frozen, the model is in evaluation mode, and nothing here ever changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from guard.errors import ModelError
from guard.manifest import ModelSpec
from guard.offline.data.input_kind import InputKind, kind_for
from guard.offline.model.answering import Answering
from guard.offline.model.graph.cut import after, before
from guard.offline.model.graph.dropouts import Dropout, dropouts
from guard.offline.model.graph.writer import attribute
from guard.offline.model.served import Difference, Served
from guard.offline.model.taps import Tap, items_first


@dataclass(frozen=True)
class Classifier:
    """A classifier's graph from unit-space images [item, ...] to logits [item, class], its specification and its taps.

    Any final softmax has been taken off the graph.
    """

    graph: fx.GraphModule
    spec: ModelSpec
    taps: tuple[Tap, ...]
    served: Served | None = None  # what answers clients, until it was measured
    difference: Difference | None = None  # of what answers clients, where that is not this graph
    answering: Answering | None = None  # the closed model that answers clients, where this graph is its student

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits [item, class] of unit-space images [item, ...]."""
        logits: Tensor = self.graph(images)
        return logits

    @property
    def kind(self) -> InputKind:
        """The kind of input that it takes."""
        return kind_for(self.spec.input)

    @property
    def penultimate(self) -> str:
        return self.taps[-1].name

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item in unit space, as the graph takes it."""
        (start,) = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        return tuple(int(size) for size in start.meta["val"].shape[1:])

    @property
    def dropouts(self) -> Mapping[str, Dropout]:
        """The dropouts that the model learned with, as far as its file tells, by the node that each drops.

        Left out are those of values that do not lie item by item, as where a recurrent layer has time in front.
        """
        found, nodes = dropouts(self.graph.graph), self.graph.graph.nodes
        own = {node.name for node in nodes if node.name in found and items_first(node)}
        return {name: dropout for name, dropout in found.items() if name in own}

    def nodes_of(self, taps: Sequence[str]) -> dict[str, str]:
        """Return the name of the node behind each tap. Raises ModelError for a tap that the model does not have."""
        nodes = {tap.name: tap.node for tap in self.taps}
        if unknown := [name for name in taps if name not in nodes]:
            raise ModelError(f"the model has no tap {unknown[0]!r}; it has: {', '.join(nodes)}")
        return {name: nodes[name] for name in taps}

    def opened(self, taps: Sequence[str]) -> fx.GraphModule:
        """Return a graph whose output is the tuple (logits, *taps).

        Raises:
            ModelError: a tap that the model does not have; the message lists those it has.
        """
        nodes = self.nodes_of(taps)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        logits = graph.graph_copy(self.graph.graph, copies)
        by_name = {node.name: copy for node, copy in copies.items()}
        graph.output((logits, *(by_name[nodes[name]] for name in taps)))
        return fx.GraphModule(self.graph, graph).eval()

    def before(self, tap: str) -> fx.GraphModule:
        """Return the graph from unit-space images to the layer at `tap`. Raises ModelError for an unknown tap."""
        return before(self.graph, self.nodes_of([tap])[tap])

    def after(self, tap: str, between: Mapping[str, nn.Module] | None = None) -> fx.GraphModule:
        """Return the graph from (the layer at `tap`, a companion) to logits.

        The modules of `between`, by tap, change the layers of later taps (see `after` in `graph/cut.py`).

        Raises:
            ModelError: a tap that the model does not have.
        """
        nodes = self.nodes_of([tap, *(between or {})])
        return after(self.graph, nodes[tap], {nodes[name]: module for name, module in (between or {}).items()})


def fingerprint(graph: fx.GraphModule) -> str:
    """Return the SHA-256 of a graph: its operators with their settings, in order, and every weight, nothing else."""
    digest = hashlib.sha256()
    place = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        settings = fx.map_arg((node.args, node.kwargs), lambda operand: place[operand])
        digest.update(f"{node.op} {node.target if node.op == 'call_function' else ''} {settings}\n".encode())
        if node.op == "get_attr":
            value = attribute(graph, str(node.target))
            digest.update(f"{value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
