"""What a model's logits say: the class that they name, and how firmly they stand behind one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def named_of(logits: Tensor) -> Tensor:
    """Return the class that logits [item, class] name, one-hot integers [item, class]."""
    return one_hot(logits.argmax(dim=1), logits.shape[1])


def belief(logits: Tensor, named: Tensor) -> Tensor:
    """Return the log-odds [item, ...] of the class that `named` marks, from logits [item, ..., class]."""
    return (logits * named).sum(dim=-1) - logits.masked_fill(named, -torch.inf).logsumexp(dim=-1)
