import numpy as np
import pytest
import torch
import torch_fidelity
from scipy.stats import norm
from sklearn.neighbors import KernelDensity

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


def test_the_kernel_distance_is_unbiased(rng):
    one, other = (torch.randint(0, 3, (2000, 1, 2, 2), generator=rng).to(torch.uint8) for _ in range(2))
    alike = fidelity(one, other, "pixels")
    assert abs(alike["kernel"]) < alike["kernel_deviation"]
    assert fidelity(one + 1, other, "pixels")["kernel"] > 10 * alike["kernel_deviation"]


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
    found = classes(logits)
    assert found["shares"] == [0.5, 0.5, 0]
    assert found["missing"] == [2]
    sure, unsure = 1 / (1 + 2 * np.exp(-9)), 1 / (1 + np.exp(-1) + np.exp(-9))
    assert found["confidence"] == pytest.approx((3 * sure + unsure) / 4, abs=1e-6)


def spoilt(images, how):
    if how == "NaN":
        return torch.cat([images[:-1].float() / 255, torch.full_like(images[-1:], torch.nan, dtype=torch.float32)])
    return {"shape": images[:, :, :14], "few": images[:0]}[how]


MEASURES = {
    "likelihood": lambda images, others: parzen(images, others, others),
    "likelihood of the validation set": lambda images, others: parzen(others, images, others),
    "likelihood of the test set": lambda images, others: parzen(others, others, images),
    "fidelity": lambda images, others: fidelity(images, others, "pixels"),
    "copying": lambda images, others: copying(images, others, others),
    "copying of the training set": lambda images, others: copying(others, images, others),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize(("how", "words"), [("NaN", "not numbers"), ("shape", "expected N x 1 x"), ("few", "expected at least")])
def test_what_cannot_be_measured_is_refused(digits, measure, how, words):
    whole = digits.repeat(4, 1, 1, 1)
    with pytest.raises(UserError, match=words) as refused:
        measure(spoilt(whole, how), whole.float() / 255)
    assert str(refused.value).count("\n") == 0


def test_images_out_of_range_are_refused(digits):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        parzen(digits.float(), digits.float() / 255, digits.float() / 255)


@pytest.mark.parametrize("logits", [torch.full((5, 10), torch.nan), torch.zeros(5), torch.zeros(0, 10)])
def test_logits_that_say_nothing_are_refused(logits):
    with pytest.raises(UserError, match="expected finite numbers N x classes"):
        classes(logits)
