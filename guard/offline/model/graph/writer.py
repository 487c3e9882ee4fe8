"""Writes a graph of operators node by node; what does not depend on the input is computed on the spot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from guard.errors import ModelError
from guard.offline.model.graph.seed import Seed


def attribute(module: nn.Module, target: str) -> Tensor:
    """Return the tensor at a dotted path. Raises: ModelError when something else is there: a branch, a loop body."""
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{target} is a {type(found).__name__}, not a tensor; control flow inside a model is not supported"
        )
    return found.detach()


@dataclass
class GraphWriter:
    """A writer of new graphs: fixed tensors are computed on the spot and written down only where they are used."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, Tensor | nn.Module] = field(default_factory=dict)
    written: dict[fx.Node, Any] = field(default_factory=dict)  # a node, a fixed tensor, a number, or a tuple of such
    names: dict[int, str] = field(default_factory=dict)
    source: fx.Node | None = None  # the operator that is being written
    _attributes: dict[int, fx.Node] = field(default_factory=dict)
    _mode: FakeTensorMode | None = None

    def placeholder(self, source: fx.Node) -> fx.Node:
        value = source.meta.get("val")
        if not isinstance(value, FakeTensor):
            raise ModelError(f"the input {source.name} carries no shape; make the graph with torch.export")
        self._mode = value.fake_mode
        node = self.graph.placeholder(str(source.target))
        node.meta["val"] = value
        return node

    def call(self, target: Any, *arguments: Any, **keywords: Any) -> Any:
        """Write one call: return a node of known shape, or the tensor itself where nothing depends on the input."""
        source = self.source
        value = source.meta.get("val") if source is not None and source.target is target else None
        return self._written(target, arguments, keywords, value)

    def call_reshaped(self, target: Any, *arguments: Any, **keywords: Any) -> Any:
        """Write one call whose result has another shape than the source's, though both may be the same operator."""
        return self._written(target, arguments, keywords, None)

    def _written(self, target: Any, arguments: Any, keywords: Any, value: Any) -> Any:
        if not any(isinstance(leaf, fx.Node) for leaf in tree_leaves((arguments, keywords))):
            return target(*arguments, **keywords)
        arguments, keywords = tree_map(self.noted, (arguments, keywords))
        name = self.source.name if self.source is not None else "node"
        node = self.graph.create_node("call_function", target, arguments, keywords, name=f"{name}_part")
        if value is None:
            arguments, keywords = fx.map_arg((arguments, keywords), lambda operand: operand.meta["val"])
            with enable_python_dispatcher():  # the compiled operators would take the batch of the example for fixed
                value = target(*arguments, **keywords)
        node.meta["val"] = value
        return node

    def seed(self, seed: Seed, output: fx.Node) -> fx.Node:
        """Write the start of a gradient that the graph holds already."""
        name = f"seed_{len(self.tensors)}"
        self.tensors[name] = seed
        node = self.graph.call_module(name, (output,))
        with enable_python_dispatcher():
            node.meta["val"] = seed(output.meta["val"])
        return node

    def output(self, results: Any, *, bare: bool) -> None:
        nodes = tree_leaves(tree_map(lambda node: self.noted(self.written[node]), results))
        self.graph.output(nodes[0] if bare else tuple(nodes))

    def noted(self, value: Any) -> Any:
        """Return a fixed tensor as a node of the graph; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._attributes:
            name = self.names.get(id(value), f"fixed_{len(self.tensors)}")
            self.tensors[name] = value
            node = self.graph.get_attr(name)
            node.meta["val"] = self._mode.from_tensor(value, static_shapes=True) if self._mode else value
            self._attributes[id(value)] = node
        return self._attributes[id(value)]
