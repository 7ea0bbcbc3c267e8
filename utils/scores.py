"""How good samples are: the likelihood that the papers of 2014 printed, and what the field measures since."""

import math
import pickle
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils.known import download_timeout
from utils.shell import UserError

SIGMAS = tuple(np.logspace(-1, 0, 10))  # the authors' grid
SIGMA_IMAGES = 1000  # of the validation set, that sigma is picked on
BLOCK = 1000  # images compared at once: a block against 10,000 samples is 40 MB


@dataclass
class Likelihood:
    """A Parzen estimate in nats: its mean over the test images, the standard error of that, and the sigma it was made with."""

    mean: float
    error: float
    sigma: float


@torch.no_grad()
def parzen(samples: torch.Tensor, validation: torch.Tensor, test: torch.Tensor) -> Likelihood:
    """The log-likelihood of test images under Gaussian windows on samples (Goodfellow et al. 2014, section 5; Breuleux et al. 2011).

    All three: float32 N x C x H x W in [0, 1]. Sigma is the one of SIGMAS under which the first SIGMA_IMAGES of `validation` are
    likeliest. The measure is biased, and real images aren't its maximum (Theis et al. 2016): blurred ones score higher. So hold a
    model's figure against the figure of real training images, by the same code.
    Raises UserError for NaN, values out of range, shapes that don't agree, and fewer than 2 samples.
    """
    for name, images in {"samples": samples, "validation images": validation, "test images": test}.items():
        require_images(images, name, like=test, least=2, dtype=torch.float32)
    trials = [windows.mean() for windows in log_likelihood(validation[:SIGMA_IMAGES], samples, SIGMAS)]
    sigma = SIGMAS[int(torch.stack(trials).argmax())]
    nats = log_likelihood(test, samples, (sigma,))[0].cpu().double()  # MPS has no float64
    return Likelihood(nats.mean().item(), nats.std().item() / math.sqrt(len(nats)), float(sigma))


def log_likelihood(images: torch.Tensor, samples: torch.Tensor, sigmas: tuple[float, ...]) -> torch.Tensor:
    """log 1/N sum over the N samples of Normal(image; sample, sigma^2 I), in nats: float32 len(sigmas) x images."""
    centre = samples.mean(0)  # short vectors make the distances' rounding small
    images, samples = (images - centre).flatten(1), (samples - centre).flatten(1)
    count, dimensions = samples.shape
    squares = samples.square().sum(1)
    blocks = []
    for block in images.split(BLOCK):
        distances = torch.addmm(squares, block, samples.T, alpha=-2).add_(block.square().sum(1, keepdim=True)).clamp_min_(0)
        blocks.append(torch.stack([(distances * (-0.5 / sigma**2)).logsumexp(1) for sigma in sigmas]))
    constants = [math.log(count) + dimensions * math.log(sigma * math.sqrt(2 * math.pi)) for sigma in sigmas]
    return torch.cat(blocks, 1) - torch.tensor(constants, device=images.device).unsqueeze(1)


def fidelity(samples: torch.Tensor, reference: torch.Tensor, features: str, seed: int = 0) -> dict[str, float]:
    """Samples against real images in the space of a network's features, by torch-fidelity, both uint8 N x C x H x W:

        frechet            the distance of two Gaussians fitted to the features (Heusel et al. 2017, equation 6); 0: alike
        kernel             the squared MMD with a cubic kernel, mean over 100 subsets of 1,000 (Binkowski et al. 2018, section 4);
        kernel_deviation   its standard deviation over the subsets
        precision          the share of samples that lie among the real images, and
        recall             the share of real images that lie among the samples: within the third neighbour's distance of any
                           (Kynkaanniemi et al. 2019, equation 2)

    features: a feature extractor's name in torch-fidelity's registry. seed: of the subsets.
    Raises UserError for shapes that don't agree, for fewer than 1,000 images on either side, and where torch-fidelity can't download a
    network's weights.
    """
    import torch_fidelity  # here, because of the second it takes

    import utils.classifiers  # noqa: F401  (gives it our features)

    for name, images in {"samples": samples, "real images": reference}.items():
        require_images(images, name, like=reference, least=1000, dtype=torch.uint8)
    try:
        with download_timeout():
            found = torch_fidelity.calculate_metrics(
                input1=_Images(samples), input2=_Images(reference), feature_extractor=features,
                fid=True, kid=True, prc=True, rng_seed=seed % 2**32, prc_batch_size=BLOCK, batch_size=50,
                cuda=torch.cuda.is_available(), save_cpu_ram=True, cache=False, verbose=False,
            )  # fmt: skip
    except (OSError, pickle.UnpicklingError) as error:
        raise UserError(f"can't get the weights of the features {features} ({error}): leave out --features") from error
    return {
        "frechet": found["frechet_inception_distance"],
        "kernel": found["kernel_inception_distance_mean"],
        "kernel_deviation": found["kernel_inception_distance_std"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


class _Images(torch.utils.data.Dataset):
    """A tensor of images as torch-fidelity wants it."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.images[number]


def classes(logits: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, object]:
    """What a classifier takes samples for, from its logits, float N x K:

        shares       of the samples that are of each class, K numbers that sum to 1
        missing      the classes, counted from 0, that no sample is of
        confidence   the mean probability of the likeliest class
        right        with labels, int64 N, the share of samples that are of the class that they should be of
    """
    if logits.ndim != 2 or len(logits) == 0 or not logits.isfinite().all():
        raise UserError(f"the logits have the shape {tuple(logits.shape)}, expected finite numbers N x classes: give whole samples")
    probabilities, found = logits.softmax(1).max(1)
    shares = F.one_hot(found, logits.shape[1]).double().mean(0).tolist()
    told = {} if labels is None else {"right": (found == labels).double().mean().item()}
    return {
        "shares": shares,
        "missing": [number for number, share in enumerate(shares) if share == 0],
        "confidence": probabilities.double().mean().item(),
        **told,
    }


@dataclass
class Copying:
    """How near samples lie to the images a model was trained on.

    ratio: the distance to the nearest training image over that to the nearest test image, mean over the samples.
    distances, nearest: of each sample, to its nearest training image, and the number of that image.
    """

    ratio: float
    distances: torch.Tensor
    nearest: torch.Tensor


def copying(samples: torch.Tensor, train: torch.Tensor, test: torch.Tensor) -> Copying:
    """Compares Euclidean distances of samples to training and to test images; all float32 N x C x H x W in [0, 1].

    A model that copies has a ratio far below that of real images that are in neither set; these themselves are below 1 when
    there are more training than test images.
    Raises UserError for NaN, values out of range, shapes that don't agree, and where there is none.
    """
    for name, images in {"samples": samples, "training images": train, "test images": test}.items():
        require_images(images, name, like=test, least=1, dtype=torch.float32)
    to_train, nearest = _nearest(samples, train)
    to_test, _ = _nearest(samples, test)
    return Copying((to_train / to_test.clamp_min(1e-6)).double().mean().item(), to_train, nearest)


def _nearest(images: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image the distance to the nearest of the others, and the number of that one."""
    found = [torch.cdist(images.flatten(1), block.flatten(1)).min(1) for block in others.split(BLOCK)]
    distances, block = torch.stack([each.values for each in found]).min(0)
    within = torch.stack([each.indices for each in found]).gather(0, block.unsqueeze(0)).squeeze(0)
    return distances, block * BLOCK + within


def require_images(images: torch.Tensor, name: str, like: torch.Tensor, least: int, dtype: torch.dtype) -> None:
    """UserError unless these are at least `least` images N x C x H x W, as large as `like`, of this type; floats finite and in [0, 1]."""
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1:] != tuple(like.shape[1:]):
        raise UserError(f"the {name} have the shape {shape}, expected N x {' x '.join(map(str, like.shape[1:]))}: give images of one size")
    if len(images) < least:
        raise UserError(f"there are {len(images):,} {name}, expected at least {least:,}: give more")
    if images.dtype != dtype:
        raise UserError(f"the {name} are {images.dtype}, expected {dtype}: convert them by to_uint8 or to_unit")
    if dtype.is_floating_point and not (images.min() >= 0 and images.max() <= 1):  # false for NaN, too
        raise UserError(f"the {name} have values that are not in [0, 1], or not numbers: give whole images in that range")
