"""Two small classifiers of our own, whose features stand in for Inception's; benchmarks/classifiers.py trains them."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from utils.shell import UserError

FOLDER = Path(__file__).parent.parent / "models" / "classifiers"
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}  # of an image: channels, height, width
WIDTHS = {"mnist": (32, 64, 128), "cifar10": (64, 128, 256)}


class Classifier(nn.Module):
    """uint8 N x C x S x S to N x 10 logits, float32, by three blocks of convolutions, each on half the size of the last.

    channels: C; widths: the channels of the three blocks, of which the last ones, averaged over the image, are the features.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(block(a, b) for a, b in zip((channels, *widths), widths, strict=False)))
        self.logits = nn.Linear(widths[-1], 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """N x widths[-1], float32; images: uint8."""
        return self.blocks(images.float() / 127.5 - 1).mean((2, 3)).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.features(images))


def block(inputs: int, outputs: int) -> nn.Module:
    """N x inputs x S x S to N x outputs x S/2 x S/2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU(),
    )  # fmt: skip


def make_classifier(data: str) -> Classifier:
    """The untrained classifier of a key of SHAPES."""
    return Classifier(SHAPES[data][0], WIDTHS[data])


def load_classifier(data: str) -> tuple[Classifier, float]:
    """The trained classifier of a key of SHAPES, and its accuracy on the test images, in [0, 1]; UserError where its file isn't whole."""
    classifier, path = make_classifier(data), FOLDER / f"{data}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            classifier.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            accuracy = float(file.metadata()["accuracy"])
    except (OSError, SafetensorError) as error:
        again = f"get it by git checkout {path}, or by python benchmarks/classifiers.py --data {data}"
        raise UserError(f"can't read the classifier {path} ({error}): {again}") from error
    return classifier.eval(), accuracy


class ClassifierFeatures(FeatureExtractorBase):
    """The features of a classifier, as torch-fidelity asks for them."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.classifier, _ = load_classifier(name)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.classifier.features(images),)


for name in SHAPES:
    register_feature_extractor(name, ClassifierFeatures)
