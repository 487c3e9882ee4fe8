"""Interpretations for people: where the model looked, which clean items it finds alike, and what a concept does.

All read layers of the model and its gradient; nothing here is served, and no verdict depends on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx
from torch.nn.functional import interpolate

from guard.offline.evidence.kinds.plain import pooled
from guard.offline.model.channel_axis import Axes, channel_axes, is_last
from guard.offline.model.classifier import Classifier
from guard.offline.model.graph.cut import after, before
from guard.offline.model.graph.shapes import shape_of
from guard.offline.model.taps import cut_nodes, items_first

RIDGE_SHARE = 1e-2  # of the mean variance, added to each: examples may be fewer than features


def grad_cam(classifier: Classifier, images: Tensor, classes: Tensor) -> Tensor | None:
    """Return where the model looked for each item's class [item, *places], none negative; None without feature maps.

    The channels of the last feature map through which everything passes are weighed by the mean over places of the
    class logit's gradient and added up; what is negative is cut, and the map is resized linearly to the item's places.
    `classes` [item] need not be the model's answers.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2.
    """
    channels = channel_axes(classifier.graph.graph)
    node = last_map(classifier, channels)
    if node is None:
        return None
    latent, slope = class_slope(classifier, images, classes, node.name)
    if is_last(node, channels[node]):
        latent, slope = (value.movedim(-1, 1) for value in (latent, slope))
    weights = slope.flatten(2).mean(dim=2)
    coarse = torch.einsum("ic,icp->ip", weights, latent.flatten(2)).clamp_min(0.0)
    mode = "bilinear" if latent.ndim == 4 else "linear"
    shaped = coarse.reshape(len(latent), 1, *latent.shape[2:])
    return interpolate(shaped, tuple(images.shape[2:]), mode=mode, align_corners=False)[:, 0]


def last_map(classifier: Classifier, channels: Axes) -> fx.Node | None:
    """Return the last node of the graph that is a cut and a feature map of more than one place; None without any.

    Left out is what has time in front of the items, and of series what holds its channels no one knows where.
    """
    axes = len(classifier.item_shape)
    cuts = [node for node in cut_nodes(classifier.graph.graph) if node.op != "placeholder" and items_first(node)]
    cuts = [node for node in cuts if axes > 2 or channels[node] is not None]
    maps = [node for node in cuts if axes > 1 and len(shape_of(node)) == 1 + axes]
    places = [node for node in maps if math.prod(shape_of(node)[1:]) > shape_of(node)[channels[node] or 1]]
    return places[-1] if places else None


def class_slope(classifier: Classifier, images: Tensor, classes: Tensor, node: str) -> tuple[Tensor, Tensor]:
    """Return the layer at a node, and the gradient with respect to it of each item's class logit, both of its shape."""
    with torch.no_grad():
        latent = before(classifier.graph, node)(images)
    with torch.enable_grad():
        watched = latent.detach().requires_grad_(True)
        logits = after(classifier.graph, node, {})(watched, watched)
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), watched)
    return latent, slope


def last_layer(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the layer before the logits [item, feature] of unit-space images [item, ...]."""
    with torch.no_grad():
        _, latent = classifier.opened([classifier.penultimate])(images)
    return pooled(latent, images)


def nearest_prototypes(layer: Tensor, prototypes: Tensor, count: int = 1) -> Tensor:
    """Return the prototypes [item, count] nearest to each item's layer [item, feature], nearest first.

    A prototype is a clean item by its layer [prototype, feature]; distances are Euclidean.

    Source: Li et al. 2018, arXiv:1710.04806, section 3.2. Their prototypes are learned with the network; ours are items
    of the data, since a model that is guarded keeps its weights.
    """
    return torch.cdist(layer, prototypes).topk(count, dim=1, largest=False).indices


def concept_direction(examples: Tensor, others: Tensor) -> Tensor:
    """Return the unit vector [feature] that tells a concept's examples from others, by a layer [item, feature] of each.

    It is the normal of Fisher's linear discriminant, with a small ridge, and points towards the concept.

    Source: Kim et al. 2018, arXiv:1711.11279, section 3.2; their linear classifier is fitted by descent.
    """
    spread = torch.cat([examples - examples.mean(dim=0), others - others.mean(dim=0)])
    scatter = spread.T @ spread / len(spread)
    ridge = RIDGE_SHARE * scatter.diagonal().mean().clamp_min(1e-12) * torch.eye(len(scatter), dtype=scatter.dtype)
    normal = torch.linalg.solve(scatter + ridge, examples.mean(dim=0) - others.mean(dim=0))
    direction: Tensor = normal / normal.norm()
    return direction


def concept_sensitivity(
    classifier: Classifier, images: Tensor, classes: Tensor, *, tap: str, direction: Tensor
) -> Tensor:
    """Return how fast each item's class logit rises when its layer moves along a concept's direction [item].

    Of feature maps the direction is over channels, and every place moves. The share of items for which it is positive
    is the paper's score.

    Source: Kim et al. 2018, arXiv:1711.11279, eq. 1 and 2.
    """
    _, slope = class_slope(classifier, images, classes, classifier.nodes_of([tap])[tap])
    over_channels = slope.flatten(2).sum(dim=2) if slope.ndim > 2 else slope
    found: Tensor = over_channels @ direction
    return found
