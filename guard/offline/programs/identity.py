"""What tells one guard from another: all that decides in its bundle."""

from __future__ import annotations

import hashlib

from guard.bundle import Bundle, file_digest


def identity_of(bundle: Bundle) -> str:
    """Of what decides in a bundle: its programs, their weights and its calibration; not its report."""
    files = sorted({*(p.file for p in bundle.manifest.programs), "weights.bin", "calibration.npz"})
    return hashlib.sha256(repr([(name, file_digest(bundle.path / name)) for name in files]).encode()).hexdigest()
