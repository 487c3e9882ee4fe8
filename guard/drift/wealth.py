"""Wealth: what bets against a hypothesis have won, shared among strategies that begin at different times.

Rule 1: where the hypothesis holds, no bet is expected to win, so that wealth is a martingale that begins at 1: that it
ever reaches 1 / a has a probability of at most a, over the whole run (Ville 1939).
Rule 2: wealth only moves between strategies at times fixed beforehand; the sum never changes by it.
Rule 3: memory grows with the logarithm of the number of blocks.

How it works. A strategy that learns from the stream must forget what was before a change, and when that comes is not
known. So at every block one slot begins anew, with a grant from the reserve: 1 / (k + 1) of it at block k. How long a
slot runs follows from k: k = odd * 2^r lives for 2^(r + 2) blocks, so that at any time slots of all ages run (Hazan and
Seshadhri 2009, Efficient learning algorithms for changing environments). What a slot holds when it ends returns to the
reserve. One slot of half the wealth runs from the beginning to the end.
"""

from __future__ import annotations

import math

import numpy as np

from guard.fusion import Floats

MAX_AGE_STEPS = 24  # the longest-lived slots that begin anew run for 2^26 blocks
FIRST_OF_ALL_BLOCKS = 0  # the slot that never begins anew


def slot_of(block: int) -> int:
    """The slot that begins anew at this block, counted from 1.

    Blocks 1, 3, 5 and so on take slots 1 and 2 in turn, blocks 2, 6, 10 slots 3 and 4, blocks 4, 12 slots 5 and 6.
    """
    age = min((block & -block).bit_length() - 1, MAX_AGE_STEPS)
    return 1 + 2 * age + ((block >> (age + 1)) & 1)


class Wealth:
    """The wealth of several streams, each with the same strategies: shares of it and the logarithm of the whole."""

    def __init__(self, streams: int, strategies: int) -> None:
        self.log_total = np.zeros(streams)
        self.reserve = np.full(streams, 0.5)  # share of the total
        self.shares = np.zeros((streams, 1, strategies))  # [stream, slot, strategy] of the total
        self.shares[:, FIRST_OF_ALL_BLOCKS] = 0.5 / strategies
        self.blocks = 0

    @property
    def slots(self) -> int:
        """The number of slots that are there so far."""
        return self.shares.shape[1]

    def grow(self, factors: Floats) -> None:
        """Multiply what is at stake by the bets' factors [stream, slot, strategy]; the reserve is not at stake."""
        self.shares *= factors
        total = self.shares.sum(axis=(1, 2)) + self.reserve
        self.log_total += np.log(total)
        self.shares /= total[:, None, None]
        self.reserve /= total

    def restart(self) -> int:
        """End a block: begin one slot anew, and return which; slots may have become more."""
        self.blocks += 1
        slot = slot_of(self.blocks)
        if slot >= self.slots:
            new = np.zeros((len(self.shares), slot + 1 - self.slots, self.shares.shape[2]))
            self.shares = np.concatenate([self.shares, new], axis=1)
        self.reserve += self.shares[:, slot].sum(axis=1)
        grant = self.reserve / (self.blocks + 1)
        self.reserve -= grant
        self.shares[:, slot] = grant[:, None] / self.shares.shape[2]
        return slot


def log10_evidence(log_total: float, tests: int) -> float:
    """The evidence of one of several tests that share a promise, as a power of ten: at -log10(a) it is an alarm.

    Each of `tests` has an equal part of the promise, so that its wealth must be that much larger: 1,000 among 10 tests
    is an evidence of 2, which is an alarm at a promise of 1 %.
    """
    return (log_total - math.log(tests)) / math.log(10)
