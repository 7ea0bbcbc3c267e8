"""DCGAN: its nets against the paper's table, each of the modern recipe's parts against a reference, and short runs on photographs."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_bar_fits, assert_one_sentence
from PIL import Image
from runs import PlainRun, assert_the_result, checkpoint, committed, pictured, steps_of, weights_of
from torch import nn

import dcgan_cifar10
from dcgan_cifar10 import (
    RECIPES,
    ClassNorm,
    Config,
    Discriminator,
    Generator,
    augmented,
    class_loss,
    losses,
    make_generator,
    move_at_once,
    squared_slope,
)
from utils.known import ImageSet
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
    assert [logits.shape for logits in discriminator(fake, torch.zeros(7, 0))] == [(7,), (7, 0)]


def test_the_pictures_within_the_players_are_as_large_as_the_papers():
    sizes = []
    generator, discriminator = Generator(128), Discriminator(128)
    for layer in (*generator.layers, *discriminator.layers):
        if isinstance(layer, (nn.Unflatten, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape[1:])))
    discriminator(generator(generator.latent(2, "cpu")), torch.zeros(2, 0))
    of_g, of_d = sizes[:4], sizes[4:]
    assert of_g == [(512, 4, 4), (256, 8, 8), (128, 16, 16), (3, 32, 32)]
    assert of_d == [(128, 16, 16), (256, 8, 8), (512, 4, 4)]


def layers_of(player, kinds):
    return [layer for layer in player.layers if isinstance(layer, kinds)]


def normalised(x, norm):
    """Batch norm worked out from its definition."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def test_the_players_are_the_papers_layer_by_layer(real):
    generator, discriminator = Generator(2).double(), Discriminator(2).double()
    for weight in (*generator.parameters(), *discriminator.parameters()):
        nn.init.normal_(weight, std=0.2)
    weighted = nn.Linear, nn.Conv2d, nn.ConvTranspose2d
    (first, *paint), norms = layers_of(generator, weighted), layers_of(generator, nn.BatchNorm2d)
    z = generator.latent(5, "cpu").double()
    x = (z @ first.weight.T).view(5, 8, 4, 4)
    for norm, layer in zip(norms, paint, strict=True):
        x = F.conv_transpose2d(normalised(x, norm).clamp(min=0), layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(generator(z), x.tanh())

    (first, *others, last), norms = layers_of(discriminator, weighted), layers_of(discriminator, nn.BatchNorm2d)
    x = F.leaky_relu(F.conv2d(real.double(), first.weight, first.bias, 2, 1), 0.2)
    for norm, layer in zip(norms, others, strict=True):
        x = F.leaky_relu(normalised(F.conv2d(x, layer.weight, None, 2, 1), norm), 0.2)
    logits, _ = discriminator(real.double(), of_any(real))
    torch.testing.assert_close(logits, x.flatten(1) @ last.weight[0] + last.bias)


def test_the_noise_is_uniform():
    z = Generator(2).latent(100_000, "cpu")
    assert -1 <= z.min() < z.max() <= 1
    # Over n draws its variance, 1 / 3, strays by sqrt(4 / 45 n); n is 10^7.
    assert abs(z.var().item() - 1 / 3) < 0.0005
    assert Generator.noise == "uniform"


def test_the_papers_constants():
    papers = Config(recipe="paper")
    assert (papers.labels, papers.base, papers.batch_size, papers.average) == (False, 128, 128, 0)
    assert (papers.decay, papers.flips, papers.augment, papers.penalty) == (False, False, False, 0)
    assert (papers.learning_rate, papers.generator_rate, papers.loss) == (0.0002, 1, "logistic")
    assert (papers.batch_norm, papers.spectral_norm) == (True, False)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_committed_run_is_that_of_its_recipe(recipe):
    assert committed(f"outputs/dcgan_cifar10_{recipe}/config.json") == dataclasses.asdict(Config(recipe=recipe))


def test_what_the_players_are_shown_depends_on_the_data():
    assert Config().classes == Config(data="mnist").classes == 10
    assert Config().flips is Config(data="mnist", flips=True).flips is True
    assert Config(data="mnist").flips is False
    assert Config(data="my_pictures").classes == Config(labels=False).classes == Config(recipe="paper").classes == 0
    generator = make_generator(Config(base=2))
    z = generator.latent(1000, "cpu")
    assert z.shape == (1000, 110)
    assert set(z[:, 100:].unique().tolist()) == {0, 1}
    assert (z[:, 100:].sum(1) == 1).all()
    assert z[:, 100:].sum(0).min() > 50  # of 1,000 draws of ten classes; 5 deviations below the mean


def test_each_class_has_its_own_scale_and_shift(real):
    norm, labels = ClassNorm(3, 10).double(), torch.arange(100) % 10
    nn.init.normal_(norm.of_class)
    found = norm(real.double(), F.one_hot(labels, 10).double())
    mean, deviation = real.double().mean((0, 2, 3), keepdim=True), real.double().var((0, 2, 3), keepdim=True, correction=0)
    for image, label, standard in zip(found, labels, (real.double() - mean) / (deviation + norm.eps).sqrt(), strict=True):
        scale, shift = norm.of_class[label].view(2, 3, 1, 1)
        torch.testing.assert_close(image, (1 + scale) * standard + shift)


def test_classes_that_say_nothing_yet_change_nothing():
    told = Generator(2, 10)
    plain = Generator(2)
    plain.load_state_dict({name: weight for name, weight in told.state_dict().items() if not name.endswith("of_class")})
    z = told.latent(20, "cpu")
    torch.testing.assert_close(told(z), plain(z[:, :100]))


def test_an_image_has_a_logit_of_its_own_and_one_of_its_class(real):
    discriminator, labels = Discriminator(2, classes=10).eval(), torch.arange(100) % 10
    found, which = discriminator(real, F.one_hot(labels, 10).float())
    each = discriminator.layers(real)
    torch.testing.assert_close(found, each[:, 0] + each[torch.arange(100), 1 + labels])
    torch.testing.assert_close(which, each[:, 11:])


def test_the_loss_of_the_classes_is_the_cross_entropy():
    logits, labels = torch.randn(20, 10), torch.arange(20) % 10
    assert class_loss(logits, F.one_hot(labels, 10)).item() == pytest.approx(F.cross_entropy(logits, labels).item())
    assert class_loss(torch.zeros(20, 0), torch.zeros(20, 0)) == 0


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
    for kind, marks in dcgan_cifar10.THEORY.items():
        for value in (0.0, 0.7) if kind == "hinge" else (0.0,):  # where the best D isn't sure, and says the same of all
            found = dict(zip(("loss_d", "loss_g"), losses(kind, torch.full((4,), value), torch.full((4,), value)), strict=True))
            for name, (_, expected) in marks.items():
                assert found[name].item() == pytest.approx(expected), (kind, name)


def of_any(images):
    """The classes of images that have none."""
    return images.new_zeros(len(images), 0)


def smooth_discriminator():
    """In float64, with the rectifiers replaced by something whose second derivative is not zero nearly everywhere."""
    discriminator = Discriminator(2, batch_norm=False).double()
    for number, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.LeakyReLU):
            discriminator.layers[number] = nn.Softplus()
        elif hasattr(layer, "weight"):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    return discriminator


def test_the_penalty_is_the_squared_gradient_by_finite_differences():
    discriminator, images = smooth_discriminator(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    found = squared_slope(discriminator, images, of_any(images)).item()
    step, slopes = 1e-5, []
    with torch.no_grad():
        for image in images:
            ends = image + step * torch.cat([sign * torch.eye(image.numel(), dtype=torch.float64) for sign in (1, -1)]).view(-1, 3, 32, 32)
            above, below = discriminator(ends, of_any(ends))[0].chunk(2)
            slopes.append((((above - below) / (2 * step)) ** 2).sum())
    assert found == pytest.approx(sum(slopes).item() / 3, rel=1e-6)


def test_with_batch_norm_the_penalty_is_of_the_sum_of_all_logits():
    norm, images, step = nn.BatchNorm2d(1).double(), torch.randn(5, 1, 2, 2, dtype=torch.float64), 1e-6

    def discriminator(shown, _):
        return norm(shown).exp().sum((1, 2, 3)), None

    squares = 0
    for change in step * torch.eye(images.numel(), dtype=torch.float64).view(-1, *images.shape):
        above, below = (discriminator(images + sign * change, None)[0].sum() for sign in (1, -1))
        squares += ((above - below) / (2 * step)) ** 2
    assert squared_slope(discriminator, images, None).item() == pytest.approx(squares.item() / 5, rel=1e-6)


def test_the_penaltys_gradient_is_that_of_finite_differences():
    """For a few weights of each layer, in float64."""
    discriminator, images = smooth_discriminator(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    weights = [weight for weight in discriminator.parameters() if weight.ndim > 1]
    gradients = torch.autograd.grad(squared_slope(discriminator, images, of_any(images)), weights)
    step = 1e-5
    for weight, gradient in zip(weights, gradients, strict=True):
        for place in torch.randint(weight.numel(), (3,)).tolist():
            place = np.unravel_index(place, weight.shape)
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                ends.append(squared_slope(discriminator, images, of_any(images)).item())
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
    assert len(shifts) > 70  # of 81; 300 draws miss one with a chance of 2%
    assert [{*axis} for axis in zip(*shifts, strict=True)] == [{*range(-4, 5)}] * 2
    assert max(holes) == 16 * 16
    assert min(holes) < 16 * 16


def test_augmented_colours_stray_as_far_as_the_papers_and_the_gradient_gets_through(real, monkeypatch):
    asked = []

    def no_shift_no_hole(low, high, shape, device):
        asked.append((low, high))
        return torch.full(shape, 0 if low == -4 else 32)

    monkeypatch.setattr(torch, "randint", no_shift_no_hole)
    images = real[:1].expand(1000, -1, -1, -1).clone().requires_grad_()
    found = augmented(images)
    assert asked == [(-4, 5), (-8, 25)]  # and so holes with any pixel, or a corner of the image, as their middle
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
    generator = Generator(config.base, config.classes).double()
    discriminator = Discriminator(config.base, config.batch_norm, config.spectral_norm, config.classes).double()
    for weight in (*generator.parameters(), *discriminator.parameters()):
        if weight.ndim > 1:
            nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
    z = generator.latent(10, "cpu").double()
    generator.latent = lambda *_: z
    return generator, discriminator, z


@pytest.mark.parametrize(
    "constants",
    [
        {}, {"labels": False}, {"loss": "hinge"}, {"loss": "relativistic"}, {"batch_norm": False},
        {"batch_norm": False, "spectral_norm": True}, {"augment": False},
    ],
)  # fmt: skip
@pytest.mark.parametrize("scaled", [True, False])
def test_both_players_get_the_gradients_of_their_losses(constants, scaled, real):
    config = Config(**SMALL, **constants, penalty=0.3, penalty_every=2, flips=False)
    generator, discriminator, z = players(config)
    statistics = copy.deepcopy(discriminator.state_dict())
    of_real, of_fake = torch.eye(10, config.classes, dtype=torch.float64), z[:, 100:]
    torch.manual_seed(1)
    real, fake = real[:10].double(), generator(z)
    shown = [augmented(images) if config.augment else images for images in (real, fake)]
    (logits_real, which_real), (logits_fake, which_fake) = discriminator(shown[0], of_real), discriminator(shown[1], of_fake)
    loss_d, loss_g = losses(config.loss, logits_real, logits_fake)
    pull_g, pull_d = loss_g + class_loss(which_fake, of_fake), loss_d + class_loss(which_real, of_real)
    slopes = [squared_slope(discriminator, *pair) for pair in zip(shown, (of_real, of_fake), strict=True)]
    pull_d = pull_d + 2 * 0.3 / 2 * sum(slopes)
    weights_g, weights_d = ([*network.parameters()] for network in (generator, discriminator))
    gradients = torch.autograd.grad(pull_g, weights_g, retain_graph=True) + torch.autograd.grad(pull_d, weights_d)
    discriminator.load_state_dict(statistics)
    before = [weight.detach().clone() for weight in weights_g + weights_d]
    sgd = [torch.optim.SGD(network.parameters(), 1.0) for network in (generator, discriminator)]
    run = PlainRun(iteration=4, scaler=torch.amp.GradScaler("cpu", init_scale=2**10, enabled=scaled))
    torch.manual_seed(1)
    move_at_once(run, generator, discriminator, *sgd, real, of_real, config)
    for old, new, gradient in zip(before, weights_g + weights_d, gradients, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-6, atol=1e-9)
    expected = {"loss_d": loss_d, "loss_g": loss_g, "logit_real": logits_real.mean(), "logit_fake": logits_fake.mean()}
    expected |= {f"slope_{kind}": slope for kind, slope in zip(("real", "fake"), slopes, strict=True)}
    if config.classes:
        expected |= {"class_real": class_loss(which_real, of_real), "class_fake": class_loss(which_fake, of_fake)}
    assert {name: value.item() for name, value in run.logged.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_the_penalty_comes_every_few_steps(real):
    config = Config(**SMALL, labels=False, penalty=1.0, penalty_every=3)
    generator, discriminator, _ = players(config)
    adams = [torch.optim.Adam(network.parameters(), 1e-4) for network in (generator, discriminator)]
    seen = []
    for iteration in range(7):
        run = PlainRun(iteration=iteration)
        move_at_once(run, generator, discriminator, *adams, real[:10].double(), of_any(real[:10]), config)
        seen.append("slope_real" in run.logged)
    assert seen == [True, False, False, True, False, False, True]


def test_every_second_real_image_is_mirrored(real, monkeypatch):
    config = Config(**SMALL, labels=False, flips=True, augment=False, penalty=0.0)
    generator, discriminator, _ = players(config)
    z = Generator(config.base).latent(100, "cpu").double()
    generator.latent = lambda *_: z
    adams = [torch.optim.Adam(network.parameters(), 1e-4) for network in (generator, discriminator)]
    seen = []
    discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    real = real.double()
    move_at_once(PlainRun(iteration=1), generator, discriminator, *adams, real, of_any(real), config)
    mirrored = (seen[0] == real.flip(3)).flatten(1).all(1)
    assert (mirrored | (seen[0] == real).flatten(1).all(1)).all()
    assert 25 <= mirrored.sum() <= 75  # of 100 tosses; 5 deviations either way


@pytest.mark.parametrize(
    "constants",
    [*({"recipe": recipe} for recipe in RECIPES), {"penalty": 0.01, "penalty_every": 4}, {"batch_norm": False, "spectral_norm": True}],
)
def test_short_and_long_floats_agree_after_20_steps(constants, real):
    """A bf16 number is wrong by 0.4% at most, a sum of many by less; but a small difference grows from step to step, the faster, the
    further the players move. So the losses agree at every step to a tenth of their own range over the 20 steps, and D's weights stray by
    less than a fifth of their way."""
    found = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        config = Config(**constants, base=16, batch_size=20)
        generator = make_generator(config)
        discriminator = Discriminator(16, config.batch_norm, config.spectral_norm, config.classes)
        of_real = torch.eye(10, config.classes).repeat(2, 1)
        adams = [torch.optim.Adam(network.parameters(), config.learning_rate, betas=(0.5, 0.999)) for network in (generator, discriminator)]
        start, steps = weights_of(discriminator), []
        for iteration in range(20):
            run = PlainRun(iteration=iteration)
            run.autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")  # noqa: B023
            move_at_once(run, generator, discriminator, *adams, real[iteration % 5 * 20 :][:20], of_real, config)
            steps.append(torch.stack([run.logged["loss_d"], run.logged["loss_g"]]).detach())
        found[precision] = torch.stack(steps), weights_of(discriminator) - start
    (losses_fp32, way_fp32), (losses_bf16, way_bf16) = found.values()
    assert (losses_bf16 - losses_fp32).abs().max() < 0.1 * (losses_fp32.amax(0) - losses_fp32.amin(0)).max()
    assert (way_bf16 - way_fp32).norm() < 0.2 * way_fp32.norm()


@pytest.fixture
def steps(monkeypatch):
    return steps_of(dcgan_cifar10, monkeypatch)


@pytest.fixture
def train(photo_folder, tmp_path):
    """A run of 20 steps."""
    small = {**SMALL, "data": str(photo_folder), "root": str(tmp_path), "name": "run", "epochs": 2, "device": "cpu"}
    return lambda **constants: dcgan_cifar10.train(Config(**small, **constants))


@pytest.mark.parametrize("decay", [True, False])
def test_the_rates_fall_to_zero_or_stay(decay, steps, train):
    train(learning_rate=1e-4, generator_rate=2.0, decay=decay)
    for left, (given, settings, _) in zip(range(20, 0, -1), steps, strict=True):
        assert [rate for rate, _ in settings] == pytest.approx([rate * left / 20 if decay else rate for rate in (2e-4, 1e-4)])
        assert [adam.param_groups[0]["betas"] for adam in given[3:5]] == [(0.5, 0.999)] * 2


def test_the_discriminator_of_a_run_is_normalised_as_asked(steps, train):
    train(batch_norm=False, spectral_norm=True)
    (_, _, discriminator, *_), _, _ = steps[-1]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in discriminator.modules())
    weighted = layers_of(discriminator.eval(), (nn.Linear, nn.Conv2d))
    assert len(weighted) == 4
    for layer in weighted:  # the power iteration finds the largest singular value from below
        assert 0.999 < torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() < 1.1


def test_the_result_is_the_average_of_the_players_with_statistics_of_its_own(steps, train, tmp_path, monkeypatch):
    monkeypatch.setattr(dcgan_cifar10, "AVERAGED_EVERY", 3)
    shown = pictured(monkeypatch)
    train(average=0.5)
    average = steps[0][2].double()
    for number, (_, _, weights) in enumerate(steps[3::3], 1):
        average += (weights - average) / (1 + 0.5 * number)
    result = Generator(SMALL["base"])
    result.load_state_dict(checkpoint(tmp_path)["generator"])
    torch.testing.assert_close(weights_of(result).double(), average, rtol=1e-4, atol=1e-6)
    assert_the_result(result, shown, tmp_path)
    z = Generator().latent(2000, "cpu", torch.Generator().manual_seed(0))
    parts = [result.layers[:2](part) for part in z.split(500)]
    torch.testing.assert_close(result.layers[2].running_mean, torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0))
    torch.testing.assert_close(result.layers[2].running_var, torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0))


def test_without_an_average_the_result_is_the_player(steps, train, tmp_path, monkeypatch):
    shown = pictured(monkeypatch)
    train(average=0.0)
    (_, player, *_), _, _ = steps[-1]
    assert_the_result(player, shown, tmp_path)


def test_each_image_of_a_known_set_comes_with_its_class(steps, photos, tmp_path, monkeypatch):
    labels = torch.arange(100) % 10
    monkeypatch.setattr("utils.data.load_known", lambda *_: ImageSet(photos, labels))
    dcgan_cifar10.train(Config(**SMALL, root=str(tmp_path), held_out=20, epochs=1, device="cpu"))
    places = {photo.numpy().tobytes(): place for place, photo in enumerate(photos)}
    assert len(steps) == 8
    for (*_, real, of_real, _), _, _ in steps:
        found = [labels[places[image.numpy().tobytes()]] for image in ((real + 1) * 127.5).round().byte()]
        assert of_real.argmax(1).tolist() == found
        assert (of_real.sum(1) == 1).all()


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
        ("recipe", "old", "paper, modern"), ("loss", "wasserstein", "logistic, hinge, relativistic"), ("base", "0", "1 to 1,024"),
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
