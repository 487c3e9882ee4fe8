"""Feature squeezing with the three squeezers that its paper takes for CIFAR-10."""

from __future__ import annotations

import torch

from guard.offline.denoisers.bit_depth import BitDepth
from guard.offline.denoisers.median import Median
from guard.offline.denoisers.non_local_means import NonLocalMeans
from guard.offline.detectors.table import build_detector
from guard.offline.evidence.gather import Gather
from guard.offline.evidence.kinds.plain import Logits
from guard.offline.evidence.kinds.variants import DenoisedLogits
from tests.offline import tiny
from tests.offline.detectors.test_values import examples, latents


def test_non_local_means_is_a_squeezer_like_the_others() -> None:
    """Three rows of one pass; the score is the largest change of the probabilities by any of them."""
    named = [{"name": "bit_depth", "bits": 5}, {"name": "median"}, {"name": "non_local_means", "strength": 0.1}]
    detector = build_detector("feature_squeezing", ["a"], {"squeezers": named})
    squeezers = (BitDepth(5), Median(), NonLocalMeans(strength=0.1))
    assert detector.needs == (Logits(), *map(DenoisedLogits, squeezers))
    classifier, inputs = tiny.image_classifier(), torch.from_numpy(tiny.data(30, seed=8)[0])
    gather = Gather(classifier, detector.needs)
    assert gather.rows == 3
    with torch.no_grad():
        found = detector.fit(examples(*latents(9)))(gather(inputs))
        plain = classifier(inputs).softmax(dim=1)
        moved = [(classifier(one(inputs)).softmax(dim=1) - plain).abs().sum(dim=1) for one in squeezers]
    torch.testing.assert_close(found, torch.stack(moved).amax(dim=0), rtol=1e-3, atol=1e-5)
    assert float(moved[2].max()) > 0.01, "it squeezes at all"
