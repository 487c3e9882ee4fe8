"""Denoisers that are networks: what they learn is what their papers want, and none is trained twice."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from guard.errors import ConfigError, DataError
from guard.offline.attacks.methods.fgsm import Fgsm
from guard.offline.attacks.model import TorchModel
from guard.offline.denoisers.guided_unet import GuidedUNet
from guard.offline.denoisers.learned import DenoiserLessons, Learned
from guard.offline.denoisers.rectifier import Rectifier
from guard.offline.denoisers.reformer import Reformer
from guard.offline.denoisers.table import DENOISERS, denoisers
from guard.offline.detectors.magnet import Magnet, MagnetHead
from guard.offline.evidence.kinds.plain import Image
from guard.offline.networks.guided_unet import UNet
from guard.offline.networks.reconstruction import train_autoencoder
from guard.offline.networks.suspicion import train_suspicion
from guard.offline.networks.weights import knowledge_of
from guard.offline.training.learned_repairs import autoencoders_of, trained
from tests.offline import tiny
from tests.offline.denoisers.prepared import lessons as easy

LEARNED = [name for name, make in DENOISERS.items() if isinstance(make(), Learned)]


def attacked(items: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, what a gradient step made of them, and their labels."""
    images, labels = (torch.from_numpy(part) for part in tiny.data(items, seed))
    model = TorchModel(tiny.image_classifier())
    return images, Fgsm(budget=0.12)(model, images, labels, torch.Generator().manual_seed(0)), labels


@cache
def lessons() -> DenoiserLessons:
    clean, fooling, labels = attacked(300, seed=21)
    return DenoiserLessons(clean, labels, fooling, clean, tiny.image_classifier(), seed=0)


def right(items: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((tiny.image_classifier()(items).argmax(dim=1) == labels).float().mean())


@pytest.mark.slow
def test_a_guided_network_gives_the_model_its_answer_back() -> None:
    denoiser = GuidedUNet(epochs=20).learn(lessons())
    clean, fooling, labels = attacked(200, seed=22)
    with torch.no_grad():
        cleaned, kept = denoiser(fooling), denoiser(clean)
    assert right(fooling, labels) < 0.6
    assert right(cleaned, labels) > right(fooling, labels) + 0.25
    assert right(kept, labels) > right(clean, labels) - 0.05


def test_a_guided_network_begins_by_taking_nothing_off() -> None:
    items = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    assert not UNet((3, 9, 7))(items).any()


def test_a_reformer_brings_what_is_far_from_clean_items_nearer() -> None:
    denoiser = Reformer(epochs=20).learn(lessons())
    clean = torch.from_numpy(tiny.data(100, seed=23)[0])
    noisy = (clean + 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    with torch.no_grad():
        assert float((denoiser(noisy) - clean).square().mean()) < 0.5 * float((noisy - clean).square().mean())


def test_the_reformer_is_magnets_network_where_its_settings_are_the_same() -> None:
    given = lessons()
    network = train_autoencoder(given.clean, noise=0.2, epochs=1, seed=0)
    magnet = Magnet(noise=0.2, epochs=1).having(tiny.SHAPE, knowledge_of(network), 0.1)
    heads = {"magnet": MagnetHead(magnet, torch.ones(3, 2), tiny.SHAPE)}
    shared = replace(given, autoencoders=autoencoders_of(heads))
    (same,) = trained([Reformer(noise=0.2, epochs=1)], lambda: shared)
    assert isinstance(same, Reformer)
    assert magnet.network is not None
    assert same.network is magnet.network.network
    (other,) = trained([Reformer(noise=0.1, epochs=1)], lambda: shared)
    assert isinstance(other, Reformer)
    assert other.network is not magnet.network.network
    assert Image() in magnet.needs


def test_what_is_fixed_asks_for_no_lessons() -> None:
    def none() -> DenoiserLessons:
        raise AssertionError

    fixed = [DENOISERS["median"]()]
    assert trained(fixed, none) == tuple(fixed)


@pytest.mark.parametrize("name", LEARNED)
def test_learning_is_deterministic_and_leaves_global_randomness_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    one, other = (DENOISERS[name](epochs=1).learn(easy((1, 8, 8))) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != DENOISERS[name](epochs=1)
    assert repr(one) == repr(DENOISERS[name](epochs=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in one.network.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_one_that_has_learned_nothing_does_not_clean(name: str) -> None:
    with pytest.raises(DataError, match="has learned nothing yet"):
        DENOISERS[name]()(torch.zeros(1, 1, 8, 8))
    few = easy((1, 8, 8))
    with pytest.raises(DataError, match="learns from clean items; got 7, wanted at least 20"):
        DENOISERS[name]().learn(replace(few, clean=few.clean[:7]))
    with pytest.raises(ConfigError, match=f"{name!r} is a network that is trained for --repair"):
        denoisers([{"name": name}])


def test_a_guided_network_needs_attacked_items() -> None:
    few = easy((1, 8, 8))
    with pytest.raises(DataError, match="learns from attacked items; got 3, wanted at least 20"):
        GuidedUNet().learn(replace(few, attacked=few.attacked[:3], originals=few.originals[:3]))


def test_a_rectifiers_slope_is_its_networks_derivative() -> None:
    for shape in ((2, 7, 9), (3, 11)):
        network = train_suspicion(*torch.rand((2, 20, *shape), generator=seeded()), epochs=1, seed=0)
        items = torch.rand((4, *shape), generator=seeded()).requires_grad_(True)
        (exact,) = torch.autograd.grad(network(items).sum(), items)
        torch.testing.assert_close(network.slope(items.detach()), exact)


def test_a_rectifier_fills_what_was_put_into_an_item() -> None:
    """Bright squares somewhere in smooth items: most of what they changed is taken back, and clean places stay."""

    def put(items: int, seed: int) -> tuple[Tensor, Tensor]:
        clean = torch.from_numpy(tiny.data(items, seed)[0]).mean(dim=(2, 3), keepdim=True).expand(-1, 1, 16, 16).clone()
        attacked = clean.clone()
        rows, columns = torch.randint(0, 14, (2, items), generator=torch.Generator().manual_seed(seed))
        for item, (row, column) in enumerate(zip(rows, columns, strict=True)):
            attacked[item, :, row : row + 2, column : column + 2] = 1.0
        return clean, attacked

    clean, attacked = put(200, 31)
    given = DenoiserLessons(clean, torch.zeros(200, dtype=torch.long), attacked, clean, lessons().model, seed=0)
    denoiser = Rectifier(epochs=10).learn(given)
    clean, attacked = put(60, 32)
    with torch.no_grad():
        cleaned = denoiser(attacked)
    assert float((cleaned - clean).square().sum()) < 0.3 * float((attacked - clean).square().sum())
    assert float((cleaned != attacked).float().mean()) < 0.2


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)
