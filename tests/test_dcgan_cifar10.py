"""DCGAN: its nets against the paper's table, each of the modern recipe's parts against a reference, and short runs on photographs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_bar_fits, assert_one_sentence
from PIL import Image
from runs import PlainRun

import dcgan_cifar10
from dcgan_cifar10 import (
    RECIPES,
    Config,
    Discriminator,
    Generator,
    augmented,
    losses,
    make_generator,
    move_at_once,
    squared_slope,
)
from utils.shell import UserError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def real(photos):
    """Photographs as a discriminator sees them, float32 100 x 3 x 32 x 32 in [-1, 1]."""
    return photos.float() / 127.5 - 1


def test_the_players_are_as_large_as_the_papers():
    generator, discriminator = make_generator(Config(recipe="paper")), Discriminator()
    # 100 to 512 x 4 x 4, and 4 x 4 transposed convolutions to 256, 128 and 3 channels, batch norm after all but the last
    weights_g = 100 * 512 * 16 + 16 * (512 * 256 + 256 * 128 + 128 * 3) + 2 * (512 + 256 + 128) + 3
    # 4 x 4 convolutions to 128, 256 and 512 channels, batch norm after all but the first, and one logit
    weights_d = 16 * (3 * 128 + 128 * 256 + 256 * 512) + 128 + 2 * (256 + 512) + 512 * 16 + 1
    assert sum(weight.numel() for weight in generator.parameters()) == weights_g
    assert sum(weight.numel() for weight in discriminator.parameters()) == weights_d
    fake = generator(generator.latent(7, "cpu"))
    assert fake.shape == (7, 3, 32, 32)
    assert -1 <= fake.min() < fake.max() <= 1
    assert discriminator(fake).shape == (7,)


def test_weights_start_as_the_papers():
    for network in (Generator(), Discriminator()):
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                # The deviation of n normal numbers strays by 1 / sqrt(2 n) of itself: here under 0.01.
                assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
            elif "bias" in name:
                assert not weight.any()


def test_the_losses_are_those_worked_out_by_hand():
    real, fake = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64), torch.tensor([0.3, 1.5, -4.0], dtype=torch.float64)
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    expected = {
        "logistic": (-d_real.log().mean() - (1 - d_fake).log().mean(), -d_fake.log().mean()),
        "hinge": ((0.5 + 3 + 0) / 3 + (1.3 + 2.5 + 0) / 3, -(0.3 + 1.5 - 4) / 3),
        "relativistic": (-(real - fake).sigmoid().log().mean(), -(fake - real).sigmoid().log().mean()),
    }
    for kind, values in expected.items():
        for found, value in zip(losses(kind, real, fake), values, strict=True):
            assert found.item() == pytest.approx(float(value)), kind


def test_the_losses_at_the_optimum_are_those_of_the_curves():
    even = torch.zeros(4)
    for kind, marks in dcgan_cifar10.THEORY.items():
        assert [loss.item() for loss in losses(kind, even, even)] == pytest.approx([marks["loss_d"][1], marks["loss_g"][1]])


def smooth_discriminator():
    """In float64, with the rectifiers replaced by something whose second derivative is not zero nearly everywhere."""
    discriminator = Discriminator(2, batch_norm=False).double()
    for number, layer in enumerate(discriminator.layers):
        if isinstance(layer, torch.nn.LeakyReLU):
            discriminator.layers[number] = torch.nn.Softplus()
        elif hasattr(layer, "weight"):
            torch.nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    return discriminator


def test_the_penalty_is_the_squared_gradient_by_finite_differences():
    discriminator, images = smooth_discriminator(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found = squared_slope(discriminator, images).item()
    step, slopes = 1e-5, []
    with torch.no_grad():
        for image in images:
            ends = image + step * torch.cat([sign * torch.eye(image.numel(), dtype=torch.float64) for sign in (1, -1)]).view(-1, 3, 32, 32)
            above, below = discriminator(ends).chunk(2)
            slopes.append((((above - below) / (2 * step)) ** 2).sum())
    assert found == pytest.approx(sum(slopes).item() / 3, rel=1e-6)


def test_the_penaltys_gradient_is_that_of_finite_differences():
    """For a few weights of each layer, in float64."""
    discriminator, images = smooth_discriminator(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    weights = [weight for weight in discriminator.parameters() if weight.ndim > 1]
    gradients = torch.autograd.grad(squared_slope(discriminator, images), weights)
    step = 1e-5
    for weight, gradient in zip(weights, gradients, strict=True):
        for place in torch.randint(weight.numel(), (3,)).tolist():
            place = np.unravel_index(place, weight.shape)
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                ends.append(squared_slope(discriminator, images).item())
                with torch.no_grad():
                    weight[place] -= sign * step
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)


def test_an_augmented_image_is_shifted_and_has_a_hole(real, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.full(shape, 0.5))  # which leaves the colours
    image = real[0]
    shifts, holes = set(), set()
    for found in augmented(image.expand(300, -1, -1, -1)):
        shown = (found != 0).all(0)  # no photograph in bytes has a 0 in [-1, 1]
        fits = []
        for down in range(-4, 5):
            for right in range(-4, 5):
                moved = F.pad(image, (4, 4, 4, 4))[:, 4 + down : 36 + down, 4 + right : 36 + right]
                if torch.allclose(found[:, shown], moved[:, shown], atol=1e-6):
                    fits.append((down, right, int(((moved != 0).all(0) & ~shown).sum())))
        ((down, right, hole),) = fits
        shifts.add((down, right))
        holes.add(hole)
    assert len(shifts) > 60  # of 81; 300 draws miss one with a chance of 2%
    assert max(holes) == 16 * 16
    assert min(holes) < 16 * 16


def test_augmented_colours_stray_as_far_as_the_papers_and_the_gradient_gets_through(real, monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, device: torch.full(shape, 0 if low == -4 else 32))  # no shift, no hole
    images = real[:1].expand(1000, -1, -1, -1).clone().requires_grad_()
    found = augmented(images)
    change = (found.mean((1, 2, 3)) - images.mean((1, 2, 3))).detach()
    assert -0.5 <= change.min() < -0.45
    assert 0.45 < change.max() <= 0.5
    grey = found - found.mean((1, 2, 3), keepdim=True)
    stretch = (grey.mean(1).std((1, 2)) / images.mean(1).std((1, 2))).detach()  # of the greys, by the contrast alone
    assert 0.5 <= stretch.min() < 0.55
    assert 1.45 < stretch.max() <= 1.5 + 1e-4
    after, before = ((each - each.mean(1, keepdim=True)).std((1, 2, 3)).detach() for each in (found, images))
    colours = after / before / stretch
    assert 0 <= colours.min() < 0.1
    assert 1.9 < colours.max() <= 2 + 1e-4
    (slope,) = torch.autograd.grad(found.square().sum(), images)
    assert (slope.abs().sum((1, 2, 3)) > 0).all()


SMALL = {"base": 4, "batch_size": 10}


def players(config):
    """In float64; the same fakes for a step and for what it is held against."""
    generator, discriminator = Generator(config.base).double(), Discriminator(config.base, config.batch_norm, config.spectral_norm).double()
    for weight in (*generator.parameters(), *discriminator.parameters()):
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
    z = generator.latent(10, "cpu").double()
    generator.latent = lambda *_: z
    return generator, discriminator, z


@pytest.mark.parametrize("loss", ["logistic", "hinge", "relativistic"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_both_players_get_the_gradients_of_their_losses(loss, batch_norm, real):
    config = Config(**SMALL, loss=loss, batch_norm=batch_norm, penalty=0.3, penalty_every=2, augment=False, flips=False)
    generator, discriminator, z = players(config)
    real, fake = real[:10].double(), generator(z)
    statistics = copy.deepcopy(discriminator.state_dict())
    loss_d, loss_g = losses(loss, discriminator(real), discriminator(fake))
    penalty = 2 * 0.3 / 2 * (squared_slope(discriminator, real) + squared_slope(discriminator, fake))
    weights_g, weights_d = ([*network.parameters()] for network in (generator, discriminator))
    gradients = torch.autograd.grad(loss_g, weights_g, retain_graph=True) + torch.autograd.grad(loss_d + penalty, weights_d)
    discriminator.load_state_dict(statistics)
    before = [weight.detach().clone() for weight in weights_g + weights_d]
    sgd = [torch.optim.SGD(network.parameters(), 1.0) for network in (generator, discriminator)]
    run = PlainRun(iteration=4)
    move_at_once(run, generator, discriminator, *sgd, real, config)
    for old, new, gradient in zip(before, weights_g + weights_d, gradients, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-6, atol=1e-9)
    assert run.logged["loss_d"].item() == pytest.approx(loss_d.item())
    assert run.logged["slope_real"].item() > 0


def test_the_penalty_comes_every_few_steps(real):
    config = Config(**SMALL, penalty=1.0, penalty_every=3)
    generator, discriminator, _ = players(config)
    adams = [torch.optim.Adam(network.parameters(), 1e-4) for network in (generator, discriminator)]
    seen = []
    for iteration in range(7):
        run = PlainRun(iteration=iteration)
        move_at_once(run, generator, discriminator, *adams, real[:10].double(), config)
        seen.append("slope_real" in run.logged)
    assert seen == [True, False, False, True, False, False, True]


def test_every_second_real_image_is_mirrored(real, monkeypatch):
    config = Config(**SMALL, flips=True, augment=False, penalty=0.0)
    generator, discriminator, _ = players(replace(config, batch_size=100))
    z = Generator(config.base).latent(100, "cpu").double()
    generator.latent = lambda *_: z
    adams = [torch.optim.Adam(network.parameters(), 1e-4) for network in (generator, discriminator)]
    seen = []
    discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    real = real.double()
    move_at_once(PlainRun(iteration=1), generator, discriminator, *adams, real, config)
    mirrored = (seen[0] == real.flip(3)).flatten(1).all(1)
    assert (mirrored | (seen[0] == real).flatten(1).all(1)).all()
    assert 25 <= mirrored.sum() <= 75  # of 100 tosses; 5 deviations either way


def weights_of(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_short_and_long_floats_agree_after_20_steps(recipe, real):
    """A bf16 number is wrong by 0.4% at most, a sum of many by less; but a small difference grows from step to step, faster at higher
    rates. At the recipe's own the losses, from log 2 and log 4 on, agree to 0.02 at every step, and D's weights stray by less than a
    fifth of their way."""
    found = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        config = Config(recipe=recipe, base=16, batch_size=20)
        generator, discriminator = Generator(16), Discriminator(16, config.batch_norm, config.spectral_norm)
        adams = [torch.optim.Adam(network.parameters(), config.learning_rate, betas=(0.5, 0.999)) for network in (generator, discriminator)]
        start, steps = weights_of(discriminator), []
        for iteration in range(20):
            run = PlainRun(iteration=iteration)
            run.autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")  # noqa: B023
            move_at_once(run, generator, discriminator, *adams, real[iteration % 5 * 20 :][:20], config)
            steps.append(torch.stack([run.logged["loss_d"], run.logged["loss_g"]]).detach())
        found[precision] = torch.stack(steps), weights_of(discriminator) - start
    (losses_fp32, way_fp32), (losses_bf16, way_bf16) = found.values()
    assert (losses_bf16 - losses_fp32).abs().max() < 0.02
    assert (losses_fp32[-1] - losses_fp32[0]).abs().max() > 0.04  # they move by more than that
    assert (way_bf16 - way_fp32).norm() < 0.2 * way_fp32.norm()


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_each_recipe_trains_on_a_folder_of_photographs(recipe, photo_folder, tmp_path, shell):
    small = ["--base", "4", "--batch-size", "10", "--epochs", "2", "--device", "cpu"]
    status, said, errors = shell("dcgan_cifar10.py", "--recipe", recipe, "--data", photo_folder, "--root", tmp_path, *small)
    assert status == 0, errors
    assert "100 images an epoch" in said
    assert "loss D" in assert_bar_fits(errors)
    for path in ("gif/{}.gif", "models/{}.safetensors", "outputs/{}/epoch_0002.png", "outputs/{}/curves.png"):
        assert (tmp_path / path.format(f"dcgan_cifar10_{recipe}")).exists()
    with Image.open(tmp_path / "outputs" / f"dcgan_cifar10_{recipe}" / "real.png") as picture:
        assert picture.mode == "RGB"
        assert picture.size == (10 * 34 + 2, 10 * 34 + 2)


@pytest.mark.parametrize(
    ("constant", "value", "said"),
    [
        ("recipe", "old", "paper, modern"), ("loss", "wasserstein", "logistic, hinge, relativistic"), ("base", "0", "1 to 4,096"),
        ("average", "-0.1", "from 0 to 1"), ("penalty", "-1", "0 or above"), ("penalty-every", "0", "above zero"),
        ("learning-rate", "inf", "above zero"), ("generator-rate", "0", "above zero"), ("batch-size", "1", "at least 2"),
        ("data", "cifar100", "cifar10"),
    ],
)  # fmt: skip
def test_constants_that_make_no_sense_are_refused(constant, value, said, photo_folder, tmp_path, shell):
    arguments = {"--data": photo_folder, "--root": tmp_path} | {f"--{constant}": value}
    status, _, errors = shell("dcgan_cifar10.py", *(word for pair in arguments.items() for word in pair))
    assert_one_sentence(status, errors, said)


def test_a_generator_that_is_too_large_is_refused_before_it_takes_memory():
    with pytest.raises(UserError, match="base is 100000"):
        make_generator(Config(base=100_000))
