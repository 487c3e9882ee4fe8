"""The sample of a model's requests that is inspected, where the operator wants no more than a share of them.

How it works. A request's draw is a keyed hash of its guard-id, evenly spread over [0, 1); it is inspected where its
draw lies below the share. Without the key no client can tell beforehand, and the same bytes sent again draw anew. With
it (`sample_key`) each decision can be computed again from the guard-id alone. Example: share 0.1, draw 0.0732:
inspected; draw 0.62: not.

Rule 1: nothing that a client sends is in the draw.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

KEY_BYTES = 32
DRAW_BYTES = 7  # fewer bits than a float's significand has, so that no draw is rounded up to 1
DRAWS = 1 << 8 * DRAW_BYTES
NOT_SAMPLED = "not_sampled"  # the reason for which what is not inspected passes


def sample_key(secret: str | None) -> bytes:
    """The key of draws, made from the operator's secret; without one it is random."""
    return secrets.token_bytes(KEY_BYTES) if secret is None else hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True)
class Sampling:
    """The share of a model's requests that is inspected, and the key of the draws."""

    share: float = 1.0
    key: bytes = field(default=b"", repr=False)

    def draw(self, name: str) -> float:
        """The draw of a request by its name, in [0, 1)."""
        digest = hashlib.blake2b(name.encode(), digest_size=DRAW_BYTES, key=self.key).digest()
        return int.from_bytes(digest, "big") / DRAWS

    def takes(self, name: str) -> bool:
        """Whether the request of this name is inspected."""
        return self.share >= 1.0 or self.draw(name) < self.share

    def fields(self, name: str) -> dict[str, float]:
        """The decision on a request, for a line in the log; nothing where all are inspected."""
        return {} if self.share >= 1.0 else {"draw": self.draw(name), "sample": self.share}
