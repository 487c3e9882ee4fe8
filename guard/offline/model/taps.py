"""Finds the taps of a model, the layers that detectors may read: stage outputs, hidden layers and the penultimate.

A node through which every path from input to logits runs (a cut) carries all that the logits depend on. The last cut
at each resolution is a stage's output; a cut that feeds a linear layer is a hidden layer; the last of these is the
penultimate.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from guard.offline.model.channel_axis import CONVOLUTIONS, LINEAR, TURNS, Axes, channel_axes, is_last, sizes
from guard.offline.model.graph.shapes import shape_of

aten = torch.ops.aten

LAYERS = {*LINEAR, *CONVOLUTIONS}
VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten._unsafe_view.default,
    aten.dropout.default,
    aten.contiguous.default,
    aten.clone.default,
}
PADS = {aten.pad.default, aten.constant_pad_nd.default}
LINE_POOLS = {aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default}
POOLS = {aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default}


@dataclass(frozen=True)
class Tap:
    """A layer that detectors may read: its name for recipes and reports, and its node in the graph."""

    name: str
    node: str


def find_taps(graph: fx.Graph) -> tuple[Tap, ...]:
    """Return stage outputs, hidden layers and the penultimate layer, in the order of the forward pass.

    Where neither lies between the input and the logits, the item itself is the one layer.
    """
    cuts, axes = cut_nodes(graph), channel_axes(graph)
    hidden = [node for node in cuts if any(user.target in LINEAR for user in node.users) and items_first(node)]
    stages: dict[tuple[int, ...], fx.Node] = {}
    shaped = after_first_layer(graph)
    for node in cuts:
        if (
            is_map(node, graph)
            and items_first(node)
            and without_row(node, graph) is node
            and node in shaped
            and node.target not in PADS
            and set(places_of(node, axes)) != {1}
            and not feeds_activation(node)
            and not turns_channels(node, axes)
        ):
            stages[resolution(node, graph, axes)] = node
    known = [without_row(origin(node), graph) for node in hidden]
    known += [node.all_input_nodes[0] for node in hidden if turns_channels(node, axes)]
    nodes = [node for node in stages.values() if node not in known]
    computed = [node for node in hidden if node.op == "call_function"]
    nodes += [node for node in computed if node in shaped] or computed
    # A linear model has no layer of its own: its item is what the logits are a linear map of
    nodes = nodes or [node for node in graph.nodes if node.op == "placeholder"]
    return named(sorted(set(nodes), key=list(graph.nodes).index))


def is_map(node: fx.Node, graph: fx.Graph) -> bool:
    """Tell whether a node's value is a map [item, channel, height, width], or one [item, channel, time] of a series.

    What three axes mean is known behind a convolution alone: recurrent layers and attention have their channels last.
    """
    axes = len(shape_of(node))
    return axes == 4 or (axes == 3 and takes_series(graph) and last_layer(node) in CONVOLUTIONS)


def items_first(node: fx.Node) -> bool:
    """Tell whether a node's first axis counts the items: recurrent layers have time in front, others parts of items."""
    (start,) = [one for one in node.graph.nodes if one.op == "placeholder"]
    return sizes(node)[:1] == sizes(start)[:1]


def takes_series(graph: fx.Graph) -> bool:
    """Tell whether a graph's input is series [item, channel, time]."""
    (start,) = [node for node in graph.nodes if node.op == "placeholder"]
    return len(shape_of(start)) == 3


def without_row(node: fx.Node, graph: fx.Graph) -> fx.Node:
    """Return what a plane of one row was made of, where a series passes through an operator over planes."""
    while takes_series(graph) and node.target is aten.unsqueeze.default:
        (node,) = node.all_input_nodes
    return node


def turns_channels(node: fx.Node, axes: Axes) -> bool:
    """Tell whether a node only puts a map's channels last."""
    if node.target not in TURNS:
        return False
    (turned,) = node.all_input_nodes
    return is_last(node, axes[node]) and axes[turned] == 1


def places_of(node: fx.Node, axes: Axes) -> tuple[int, ...]:
    """Return a map's height and width, or a series' length, wherever its channels are."""
    shape = shape_of(node)
    return tuple(shape[1:-1] if is_last(node, axes[node]) else shape[2:])


def resolution(node: fx.Node, graph: fx.Graph, axes: Axes) -> tuple[int, ...]:
    """Return a map's height and width; of series its length alone, also where it passes as a plane of one row."""
    places = places_of(node, axes)
    return tuple(size for size in places if size != 1) if takes_series(graph) else places


def last_layer(node: fx.Node) -> object:
    """Return the operator of the nearest layer with weights at or before a node, along its first operands."""
    while node.target not in LAYERS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.target


def after_first_layer(graph: fx.Graph) -> set[fx.Node]:
    """Return the first layer with weights and what follows; before it the input is only scaled and transposed."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    first = next((place for place, node in enumerate(nodes) if node.target in LAYERS), 0)
    return set(nodes[first:])


def cut_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that every path from the input to the output passes, the input included, the logits not."""
    active = active_nodes(graph)
    place = {node: i for i, node in enumerate(active)}
    cuts, reach = [], 0
    for i, node in enumerate(active):
        if reach <= i:
            cuts.append(node)
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return cuts[:-1]  # the last cut is the logits themselves


def active_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes between input and output, in order, without those that compute the number of items."""
    below: set[fx.Node] = set()
    for node in graph.nodes:
        reads = node.op == "placeholder" or any(source in below for source in node.all_input_nodes)
        if reads and not isinstance(node.meta.get("val"), torch.SymInt):
            below.add(node)
    above: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output" or any(user in above for user in node.users):
            above.add(node)
    return [node for node in graph.nodes if node in below and node in above and node.op != "output"]


def origin(node: fx.Node) -> fx.Node:
    """Return the feature map that a pooled or flattened vector comes from as a whole, or the node itself."""
    while node.target in VIEWS or is_pool_of_all(node):
        pooled = node.target not in VIEWS
        node = node.all_input_nodes[0]
        if pooled:
            return node
    return node


def is_pool_of_all(node: fx.Node) -> bool:
    """Tell whether a node averages whole feature maps."""
    left = shape_of(node)[2:]
    return (node.target in POOLS and left in ([], [1, 1])) or (node.target in LINE_POOLS and left == [1])


def feeds_activation(node: fx.Node) -> bool:
    """Tell whether a node's only reader is elementwise (an activation, a batch normalisation), the better tap."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    return (
        shape_of(user) == shape_of(node)
        and len(user.all_input_nodes) >= 1
        and any(
            word in str(user.target)
            for word in ("relu", "silu", "hardswish", "gelu", "sigmoid", "batch_norm", "hardtanh")
        )
    )


def named(nodes: list[fx.Node]) -> tuple[Tap, ...]:
    """Name the taps after the file's names or module paths where these tell them apart, else after their nodes."""
    paths = [str(node.meta.get("layer") or module_path(node)) for node in nodes]
    counts = Counter(paths)
    return tuple(
        Tap(path if path and counts[path] == 1 else node.name, node.name)
        for node, path in zip(nodes, paths, strict=True)
    )


def module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else ""
