"""Gathering of evidence: the union of all needs, in as few passes of the model as possible.

Rule 1: one plain pass over the items, one pass over all variant rows together, one backward per distinct rule; copies
whose gradient is asked for run in the plain pass, beside their items; other rules go back over the items alone.
Rule 2: an item's evidence depends on no other item of its batch.
Rule 3: a need says with which pass it comes; nothing here knows its kind.
Rule 4: a second network runs once, on the items themselves, beside the model.

How it works. The needs of all detectors are merged, each once, and sorted by the pass that they come with: needs of the
plain pass read its outputs, variants share one further forward (`row_pass.py`), gradients come from the backward of the
plain pass.

For example a batch of 10 items, and detectors that need the logits, a latent, the input gradient and the logits of two
denoised versions. The plain pass runs 10 rows and gives logits and latent; its backward over these 10 rows gives the
gradient; the row pass runs 2 x 10 = 20 rows and gives both denoised logits. Then `rows` is 2 and `backwards` is 1. A
detector that also needs the gradient at 4 noisy copies of each item makes the plain pass and its backward 10 + 4 x 10 =
50 rows long, with no further pass; then `rows` is 2 + 4 = 6 and `backwards` is 1 + 4 = 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, fx, nn

from guard.errors import ConfigError
from guard.offline.evidence.kinds.gradients import SEEDS, CopyNeed, GradientNeed, Objective, RuledNeed
from guard.offline.evidence.kinds.plain import Image, Logits, PlainAnswers, PlainNeed
from guard.offline.evidence.kinds.second import NetworkNeed
from guard.offline.evidence.kinds.variants import RowNeed
from guard.offline.evidence.needs import Evidence, Need
from guard.offline.evidence.row_pass import RowPass
from guard.offline.model.classifier import Classifier
from guard.offline.model.gradient.input_gradient import ADJOINTS, ADJOINTS_SMOOTH, Backward, with_backwards
from guard.offline.model.unit_space import unordered
from guard.offline.networks.multiply_adds import multiply_adds


class Gather(nn.Module):
    """Module that maps unit-space images [item, ...] to their evidence: image, logits, and these needs.

    `smooth` gives the input gradient a derivative of its own (a softplus-shaped surrogate for ReLU's step), for
    attackers who differentiate through it; values are the same.
    """

    def __init__(self, classifier: Classifier, needs: Iterable[Need], *, smooth: bool = False) -> None:
        super().__init__()
        self.needs: tuple[Need, ...] = distinct(with_brought(needs))
        self.read_plain = [cast(PlainNeed, need) for need in self.needs if need.rides == "plain"]
        variants = [cast(RowNeed, need) for need in self.needs if need.rides == "rows"]
        gradients = [cast(GradientNeed, need) for need in self.needs if need.rides == "backward"]
        self.seconds = [cast(NetworkNeed, need) for need in self.needs if need.rides == "second"]
        self.networks = nn.ModuleList(need.network.network for need in self.seconds)  # so that they are seen as parts
        self.row_pass = RowPass(classifier, variants) if variants else None
        self.rest = {tap: classifier.after(tap) for tap in self.cut_at()}
        self.taps = self.plain_taps()
        self.copied = tuple(need for need in gradients if isinstance(need, CopyNeed))
        self.ruled = tuple(need for need in gradients if isinstance(need, RuledNeed))
        own = [need for need in gradients if need not in (*self.copied, *self.ruled)]
        if len(own) > 1:
            raise ConfigError(
                f"the detectors of one program read {len(own)} different input gradients, {own}; wanted one: give them "
                "the same `of`, or leave one of them out"
            )
        self.gradient = cast(Need, own[0]) if own else None
        self.copies = 1 + sum(need.rows_per_item for need in self.copied)
        if self.copied:
            self.lay_out(classifier)
        plain = classifier.opened(self.taps)
        table = ADJOINTS_SMOOTH if smooth else ADJOINTS
        backwards = [Backward(OwnClass(need.of, self.copies), table) for need in own]
        backwards += [Backward(SEEDS[need.of], need.table(table), parts=self.copies) for need in self.ruled]
        self.plain: fx.GraphModule = with_backwards(plain, backwards) if backwards else plain
        self.multiply_adds = partial(model_size, classifier)

    def lay_out(self, classifier: Classifier) -> None:
        """Keep what makes the copies of an item: a share of it [row, 1, ...], and a pattern [row, 1, shape of an item].

        Categories of a table stay as they are: they have no order.
        """
        shares = torch.tensor([share for need in self.copied for share in need.shares()])
        patterns = torch.cat([need.patterns(classifier.item_shape) for need in self.copied])[:, None]
        shares = shares.reshape(-1, *[1] * (patterns.ndim - 1))
        still = unordered(classifier.spec.input.features)
        if still is not None:
            shares, patterns = torch.where(still, 1.0, shares), patterns.masked_fill(still, 0.0)
        self.register_buffer("shares", None if bool((shares == 1).all()) else shares)
        self.register_buffer("patterns", patterns)
        self.shares: Tensor | None
        self.patterns: Tensor

    def cut_at(self) -> tuple[str, ...]:
        """Return the taps behind which a need runs the rest of the model itself, which happens only while fitting."""
        return tuple(dict.fromkeys(tap for need in self.read_plain if not need.compiles for tap in need.taps))

    def plain_taps(self) -> tuple[str, ...]:
        """Return the taps that the plain pass outputs: those that needs read, and the one where steered rows begin."""
        asked = [tap for need in self.read_plain for tap in need.taps]
        joins = self.row_pass.joins if self.row_pass is not None else ()
        return tuple(dict.fromkeys([*asked, *joins]))

    @property
    def compiles(self) -> bool:
        """Whether every need has an ONNX form."""
        return all(need.compiles for need in self.needs)

    @property
    def rows(self) -> int:
        """Number of variant rows per item, beside the item itself."""
        return sum(need.rows_per_item for need in self.needs)

    @property
    def backwards(self) -> int:
        return sum(need.backwards for need in self.needs)

    @property
    def forwards(self) -> float:
        """Forwards of the model that second networks cost per item, by multiply-adds."""
        return sum(need.forwards for need in self.needs)

    def forward(self, images: Tensor) -> Evidence:
        outputs: Sequence[Tensor] = self.plain(self.with_copies(images))
        logits = self.own(outputs[0])
        latents = {tap: self.own(value) for tap, value in zip(self.taps, outputs[1:], strict=False)}
        plain = PlainAnswers(images, logits, latents, self.rest.__getitem__, self.multiply_adds)
        evidence: dict[Need, Tensor] = {Image(): images, Logits(): logits}
        evidence |= {need: need.read(plain) for need in self.read_plain}
        evidence |= {need: need.read(images) for need in self.seconds}
        slopes = outputs[1 + len(self.taps) :]
        if self.gradient:
            evidence |= self.gradients(images, slopes[0])
        sent = slopes[len(slopes) - len(self.ruled) :]
        evidence |= {need: need.read(images, value) for need, value in zip(self.ruled, sent, strict=True)}
        if self.row_pass is not None:
            evidence |= self.row_pass(images, SEEDS["logit"](logits), latents, evidence)
        return {need: evidence[need] for need in (Image(), Logits(), *self.needs)}

    def with_copies(self, images: Tensor) -> Tensor:
        """Return the items, followed by their noisy copies [copy x item, ...]."""
        if self.copies == 1:
            return images
        shared = images if self.shares is None else images * self.shares
        return torch.cat([images, (shared + self.patterns).clamp(0.0, 1.0).flatten(0, 1)])

    def own(self, values: Tensor) -> Tensor:
        """Select the values of the items themselves, without those of their noisy copies."""
        return values if self.copies == 1 else values.unflatten(0, (self.copies, -1))[0]

    def gradients(self, images: Tensor, values: Tensor) -> Evidence:
        """Split the gradient at the items and at their noisy copies [copy x item, ...] by need."""
        if self.gradient is None or self.copies == 1:
            return {} if self.gradient is None else {self.gradient: values}
        rows = values.unflatten(0, (self.copies, -1))
        evidence: dict[Need, Tensor] = {self.gradient: rows[0]}
        first = 1
        for need in self.copied:
            evidence[need] = need.read(images, rows[first : first + need.rows_per_item].transpose(0, 1))
            first += need.rows_per_item
        return evidence


def model_size(classifier: Classifier) -> int:
    """Return the multiply-adds of one forward of the model."""
    return multiply_adds(classifier.graph, torch.zeros(1, *classifier.item_shape))


def with_brought(needs: Iterable[Need]) -> Iterable[Need]:
    """Yield each need, followed by the needs that come with it."""
    for need in needs:
        yield need
        yield from need.brings


def distinct(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Return each need once, in the order of first mention."""
    return tuple(dict.fromkeys(needs))


class OwnClass:
    """Gradient seed [copy x item, class] of each item's own objective, the same for all its copies."""

    def __init__(self, of: Objective, copies: int) -> None:
        self.of: Objective = of
        self.copies = copies

    def __call__(self, logits: Tensor) -> Tensor:
        if self.copies == 1:
            return SEEDS[self.of](logits)
        return SEEDS[self.of](logits.unflatten(0, (self.copies, -1))[0]).repeat(self.copies, 1)
