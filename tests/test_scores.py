import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_fidelity
from conftest import PROJECT
from scipy.stats import norm
from sklearn.neighbors import KernelDensity

from utils.images import to_uint8
from utils.scores import SIGMA_IMAGES, SIGMAS, classes, copying, fidelity, log_likelihood, parzen
from utils.shell import UserError


class Pixels(torch_fidelity.FeatureExtractorBase):
    """Features that can be worked out by hand: the pixels themselves."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "pixels"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return (images.flatten(1).float(),)


torch_fidelity.register_feature_extractor("pixels", Pixels)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_the_likelihood_is_the_one_of_scikit_learn(digits):
    samples, images = digits[:200].float() / 255, digits[200:].float() / 255
    found = log_likelihood(images, samples, SIGMAS)
    for nats, sigma in zip(found, SIGMAS, strict=True):
        # In one leaf: the bounds that its trees prune by lose their digits in 784 dimensions.
        reference = KernelDensity(bandwidth=sigma, leaf_size=200).fit(samples.flatten(1).numpy()).score_samples(images.flatten(1).numpy())
        np.testing.assert_allclose(nats, reference, rtol=1e-5, atol=1e-2)


def test_the_likelihood_of_gaussians_is_the_closed_form(rng):
    # Windows of sigma on N(1/2, s^2) are N(1/2, s^2 + sigma^2), but for the samples' chance: with 40,000 of them the density at a
    # place is off by under 3%, and the mean over 2,000 places by far less.
    def draw(count):
        return (0.5 + 0.1 * torch.randn(count, 1, 1, 2, generator=rng)).clamp(0, 1)

    samples, validation, test = draw(40_000), draw(1000), draw(2000)
    found = parzen(samples, validation, test)
    assert found.sigma == SIGMAS[0]  # with so many samples in two dimensions the narrowest
    expected = norm(0.5, np.hypot(0.1, found.sigma)).logpdf(test.flatten(1).numpy()).sum(1)
    assert found.mean == pytest.approx(expected.mean(), abs=0.02)
    assert found.error == pytest.approx(expected.std() / np.sqrt(len(test)), rel=0.05)


def test_sigma_is_picked_on_the_first_validation_images(rng):
    samples = torch.rand(500, 1, 4, 4, generator=rng)
    near, far = samples[:100].repeat(10, 1, 1, 1), 1 - samples[:100]
    assert len(near) == SIGMA_IMAGES
    assert parzen(samples, near, far).sigma == SIGMAS[0]
    assert parzen(samples, torch.cat([near, far]), far).sigma == SIGMAS[0]
    assert parzen(samples, far, near).sigma > SIGMAS[0]


def test_the_frechet_distance_is_the_closed_form(rng):
    images = torch.randint(0, 100, (1000, 1, 3, 3), generator=rng).to(torch.uint8)
    images[:, :, 0] = images[:, :, 1]  # singular covariances, as features often have
    pixels = images.flatten(1).double()
    mean, variance = pixels.mean(0), pixels.var(0)
    assert fidelity(images, images, "pixels")["frechet"] == pytest.approx(0, abs=1e-2)
    assert fidelity(images + 10, images, "pixels")["frechet"] == pytest.approx(9 * 10**2, rel=1e-4)
    # 2X against X: |2m - m|^2 + tr(4C + C - 2 (4C C)^(1/2)) = |m|^2 + tr C
    assert fidelity(images * 2, images, "pixels")["frechet"] == pytest.approx((mean.square() + variance).sum().item(), rel=1e-4)


def test_our_features_need_no_other_import():
    images = "torch.randint(0, 256, (1000, 1, 28, 28), dtype=torch.uint8)"
    code = f"import torch; from utils.scores import fidelity; images = {images}; fidelity(images, images, 'mnist')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_the_kernel_distance_is_the_unbiased_cubic_one(rng):
    one, other = (torch.randint(0, 3 + more, (1000, 1, 2, 2), generator=rng).to(torch.uint8) for more in (0, 1))
    x, y = one.flatten(1).double(), other.flatten(1).double()
    within, without = ((a @ b.T / 4 + 1) ** 3 for a, b in ((torch.cat([x, y]), torch.cat([x, y])), (x, y)))
    within = sum((part.sum() - part.trace()) / (1000 * 999) for part in (within[:1000, :1000], within[1000:, 1000:]))
    found = fidelity(one, other, "pixels")  # each subset of 1,000 is all of them
    assert found["kernel"] == pytest.approx((within - 2 * without.mean()).item(), rel=1e-3)
    assert found["kernel_deviation"] < 1e-3 * found["kernel"]
    assert abs(fidelity(one, one.flip(3), "pixels")["kernel"]) < found["kernel"] / 10


def test_precision_and_recall_of_clusters(rng):
    # Three clusters so tight that nobody's third neighbour is in another one.
    def cluster(place, count):
        return (torch.tensor(place).view(1, 1, 1, 3) + torch.randint(0, 20, (count, 1, 1, 3), generator=rng)).to(torch.uint8)

    a, b, c = (0, 0, 0), (200, 0, 0), (0, 200, 200)
    real = torch.cat([cluster(a, 1000), cluster(b, 1000)])
    same = fidelity(real, real, "pixels")
    assert (same["precision"], same["recall"]) == (1, 1)
    # One that finds half of the data, and one that finds it and adds as much that isn't data.
    half = fidelity(torch.cat([real[:1000], real[:1000]]), real, "pixels")
    assert (half["precision"], half["recall"]) == (1, 0.5)
    beside = fidelity(torch.cat([real[:1000], cluster(c, 1000)]), real, "pixels")
    assert (beside["precision"], beside["recall"]) == (0.5, 0.5)


def test_a_planted_copy_is_found(digits):
    train, test = digits[:200].float() / 255, digits[200:280].float() / 255
    strangers = digits[280:].float() / 255
    innocent = copying(strangers, train, test)
    assert 0.7 < innocent.ratio < 1.1
    copied = copying(torch.cat([train[150:151], strangers[1:]]), train, test)
    assert copied.distances[0] == pytest.approx(0, abs=0.02)  # from squares of about 100 in float32; others are 5 and more away
    assert copied.nearest[0] == 150
    assert copied.ratio < innocent.ratio
    assert copying(train, train, test).ratio < 0.01


def test_the_nearest_image_is_found_beyond_the_first_block(rng):
    train = torch.rand(2500, 1, 3, 3, generator=rng)
    found = copying(train[[7, 1007, 2400]], train, train[:10])
    assert found.nearest.tolist() == [7, 1007, 2400]


def test_classes():
    logits = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 8]])
    found = classes(logits, labels=torch.tensor([0, 1, 1, 1]))
    assert found["shares"] == [0.5, 0.5, 0]
    assert found["missing"] == [2]
    assert found["right"] == 0.75
    sure, unsure = 1 / (1 + 2 * np.exp(-9)), 1 / (1 + np.exp(-1) + np.exp(-9))
    assert found["confidence"] == pytest.approx((3 * sure + unsure) / 4, abs=1e-6)


MEASURES = {  # and of what it measures the least number that has a score
    "likelihood": (lambda images, others: parzen(images, others, others), 2),
    "likelihood of the validation set": (lambda images, others: parzen(others, images, others), 2),
    "likelihood of the test set": (lambda images, others: parzen(others, others, images), 2),
    "fidelity": (lambda images, others: fidelity(bytes_of(images), bytes_of(others), "pixels"), 1000),
    "fidelity of the real images": (lambda images, others: fidelity(bytes_of(others), bytes_of(images), "pixels"), 1000),
    "copying": (lambda images, others: copying(images, others, others), 1),
    "copying of the training set": (lambda images, others: copying(others, images, others), 1),
}


def bytes_of(images):
    """As uint8; but where that would hide NaN, as they are."""
    return to_uint8(images) if images.isfinite().all() else images


@pytest.mark.parametrize(("measure", "least"), MEASURES.values(), ids=MEASURES)
def test_what_cannot_be_measured_is_refused(digits, measure, least):
    whole = digits.repeat(4, 1, 1, 1).float() / 255
    with_nan = whole.clone()
    with_nan[-1, 0, 5, 5] = torch.nan
    for images, words in (
        (with_nan, r"not numbers|torch.float32, expected torch.uint8"),
        (whole[:, :, :14], r"have the shape .*, expected N x"),
        (whole[:, 0], r"have the shape .*, expected N x"),
        (whole[: least - 1], f"expected at least {least:,}"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            measure(images, whole)
        assert "\n" not in str(refused.value)
    measure(whole[:least], whole)


def test_images_out_of_range_are_refused(digits):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        parzen(digits.float(), digits.float() / 255, digits.float() / 255)
    with pytest.raises(UserError, match=r"torch.uint8, expected torch.float32"):
        parzen(digits, digits.float() / 255, digits.float() / 255)


@pytest.mark.parametrize("logits", [torch.full((5, 10), torch.nan), torch.zeros(5), torch.zeros(0, 10)])
def test_logits_that_say_nothing_are_refused(logits):
    with pytest.raises(UserError, match="expected finite numbers N x classes"):
        classes(logits)
