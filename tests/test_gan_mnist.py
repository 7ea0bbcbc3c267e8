"""The game: players, losses, steps, against references worked out by hand, slowly or in float64."""

import math
from itertools import pairwise

import pytest
import torch
from runs import PlainRun
from torch import nn

import gan_mnist
import sampler
from gan_mnist import (
    DISCRIMINATORS,
    Config,
    Maxout,
    discriminator_loss,
    generator_loss,
    held_out_likelihood,
    make_generator,
    move_at_once,
    paper_schedule,
    take_turns,
)
from utils import data
from utils.device import Dropout
from utils.scores import parzen
from utils.shell import UserError

MODELS = ["maxout", "batchnorm", "leaky"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("model", "weights_g", "weights_d"),
    [
        # 100-1200-1200-784 and 784-(240 x 5)-(240 x 5)-1, with biases
        ("maxout", 101 * 1200 + 1201 * 1200 + 1201 * 784, 785 * 1200 + 241 * 1200 + 241),
        ("batchnorm", 101 * 1200 + 1201 * 1200 + 1201 * 784 + 4 * 1200, 785 * 1200 + 241 * 1200 + 241),
        ("leaky", 101 * 1200 + 1201 * 1200 + 1201 * 784, 785 * 240 + 241 * 240 + 241),
    ],
)
def test_the_players_are_as_large_as_the_papers(model, weights_g, weights_d):
    generator, discriminator = make_generator(Config(model=model)), DISCRIMINATORS[model]()
    assert sum(weight.numel() for weight in generator.parameters()) == weights_g
    assert sum(weight.numel() for weight in discriminator.parameters()) == weights_d
    fake = generator(generator.latent(7, "cpu"))
    low, high = generator.pixels
    assert fake.shape == (7, 1, 28, 28)
    assert low <= fake.min()
    assert fake.max() <= high
    assert discriminator(fake).shape == (7,)


def test_the_papers_discriminator_drops_inputs_and_both_hidden_layers():
    dropouts = [(type(after), before.p) for before, after in pairwise(DISCRIMINATORS["maxout"]().layers) if isinstance(before, Dropout)]
    assert dropouts == [(Maxout, 0.2), (Maxout, 0.5), (nn.Linear, 0.5)]
    assert DISCRIMINATORS["batchnorm"] is DISCRIMINATORS["maxout"]


def test_uniform_noise_has_unit_variance_and_stays_in_its_cube():
    z = make_generator(Config(model="maxout")).latent(2000, "cpu")
    assert z.abs().max() <= math.sqrt(3)
    # The variance of n = 200,000 uniform values of unit variance has the deviation sqrt(0.8 / n) = 0.002: five of them.
    assert abs(z.var() - 1) < 0.01


def test_the_papers_weights_start_small():
    generator, discriminator = make_generator(Config(model="maxout")), DISCRIMINATORS["maxout"]()
    for network, bound in ((generator, 0.05), (discriminator, 0.005)):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                assert 0.9 * bound < layer.weight.abs().max() <= bound
                assert not layer.bias.any()


def test_the_output_starts_at_the_pixels_means(digits):
    generator = make_generator(Config(model="maxout"))
    generator.start_from_marginals(digits)
    for layer in generator.layers:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    means = digits.double().mean(0) / 255
    torch.testing.assert_close(generator(torch.zeros(1, 100))[0].double(), means, atol=2e-7, rtol=1e-4)
    assert torch.isfinite(generator.layers[-1].bias).all()  # pixels that are black in every image


@pytest.mark.parametrize("model", MODELS)
def test_saturated_pixels_keep_their_gradient_in_short_numbers(model):
    """A sigmoid of 7 is 0.9991 and a tanh of 3.5 0.9982: both are 1 in bf16, where the gradient y (1 - y), 1 - y^2 would vanish."""
    generator = make_generator(Config(model=model))
    output = generator.layers[-1]
    nn.init.zeros_(output.weight)
    nn.init.constant_(output.bias, 3.5 if model == "leaky" else 7.0)
    with torch.autocast("cpu", torch.bfloat16):
        fake = generator(generator.latent(10, "cpu"))
    fake.sum().backward()
    y = torch.tensor(3.5).tanh() if model == "leaky" else torch.tensor(7.0).sigmoid()
    slope = 1 - y**2 if model == "leaky" else y * (1 - y)
    torch.testing.assert_close(output.bias.grad, (10 * slope).expand(784), rtol=0.02, atol=0)


def test_maxout_is_the_largest_of_its_pieces_and_passes_the_gradient_to_it_alone():
    layer = Maxout(6, 4, pieces=3).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    weight, bias = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    expected, gradient = [], torch.zeros(12, 6, dtype=torch.float64)
    for row in x.tolist():
        for unit in range(4):
            pieces = range(3 * unit, 3 * unit + 3)
            values = {piece: sum(w * v for w, v in zip(weight[piece], row, strict=True)) + bias[piece] for piece in pieces}
            best = max(values, key=values.get)
            expected.append(values[best])
            gradient[best] += torch.tensor(row, dtype=torch.float64)
    result = layer(x)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64).view(5, 4))
    result.sum().backward()
    torch.testing.assert_close(layer.linear.weight.grad, gradient)


def test_the_losses_are_the_papers_and_stay_finite():
    real, fake = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    d_real, d_fake = 1 / (1 + torch.exp(-real)), 1 / (1 + torch.exp(-fake))
    torch.testing.assert_close(discriminator_loss(real, fake), -d_real.log().mean() - (1 - d_fake).log().mean())
    torch.testing.assert_close(generator_loss(fake), -d_fake.log().mean())
    undecided = torch.zeros(3)
    assert discriminator_loss(undecided, undecided).item() == pytest.approx(math.log(4))
    sure = torch.tensor([1000.0])
    assert discriminator_loss(sure, -sure).item() == 0
    assert discriminator_loss(-sure, sure).item() == 2000
    assert generator_loss(-sure).item() == 1000


def test_the_losses_gradients_are_those_worked_out_by_hand():
    real = torch.tensor([-200.0, -1.5, 0.0, 2.0, 200.0], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([-300.0, -0.5, 0.0, 3.0, 300.0], dtype=torch.float64, requires_grad=True)
    # d/da of -log sigmoid(a) is sigmoid(a) - 1; of -log(1 - sigmoid(a)) it is sigmoid(a).
    by_real, by_fake = torch.autograd.grad(discriminator_loss(real, fake), (real, fake))
    torch.testing.assert_close(by_real, (real.sigmoid() - 1) / 5)
    torch.testing.assert_close(by_fake, fake.sigmoid() / 5)
    (by_fake,) = torch.autograd.grad(generator_loss(fake), fake)
    torch.testing.assert_close(by_fake, (fake.sigmoid() - 1) / 5)


@pytest.mark.parametrize(("last", "warm_up"), [(0.1, 0), (0.1, 100), (0.4, 100), (0.05, 100)])
def test_the_schedule_is_the_papers_rule_exactly(last, warm_up):
    """velocity = momentum * velocity - rate * gradient; weight += velocity; the rate falls by 1.000004 after every update.

    It rises from 0.1 to one that is higher, over the warm-up.
    """
    weight = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weight], last, momentum=0.5)
    expected, velocity = 1.0, 0.0
    for update in range(400):
        epoch = 1 + update
        gradient = math.sin(update)
        momentum = 0.5 + 0.2 * (min(epoch, 250) - 1) / 249
        rate = (0.1 + (last - 0.1) * update / 100 if last > 0.1 and update < 100 else last) / 1.000004**update
        velocity = momentum * velocity - rate * gradient
        expected += velocity
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        paper_schedule(sgd, last, update, epoch, warm_up)
        sgd.step()
        assert weight.item() == pytest.approx(expected, rel=1e-12)
    paper_schedule(sgd, last, 10_000_000, 400, warm_up)
    assert sgd.param_groups[0]["lr"] == 1e-6


RATE = 0.01


def players(model):
    """Players in float64 without dropout, whose generator ignores the draw of z: the same fakes for step and reference.

    The weights are larger than the paper's, so that every gradient is far above the rounding. `calls` counts D's.
    """
    generator, discriminator = make_generator(Config(model=model)).double(), DISCRIMINATORS[model]().double().eval()
    for weight in discriminator.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    calls = []
    discriminator.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    z = generator.latent(20, "cpu").double()
    generator.latent = lambda *_: z
    optimizers = [torch.optim.SGD(network.parameters(), RATE) for network in (generator, discriminator)]
    return calls, z, generator, discriminator, *optimizers


def weights_of(network):
    return [weight.detach().clone() for weight in network.parameters()]


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()))


def assert_moved_along(network, before, expected):
    """Each weight has moved by -RATE times the gradient expected: the moves are compared, since weights would hide them."""
    for weight, old, gradient in zip(network.parameters(), before, expected, strict=True):
        assert gradient.abs().max() > 1e-6 or weight.ndim == 1  # (a bias before batch normalisation has none)
        torch.testing.assert_close((old - weight.detach()) / RATE, gradient, rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("model", ["maxout", "batchnorm"])
def test_at_once_moves_both_players_from_the_old_weights(model, digits):
    calls, z, generator, discriminator, sgd_g, sgd_d = players(model)
    real = digits[:20].double() / 255
    # Half of D's cross-entropies, and the non-saturating loss, both at the old weights.
    loss_d = -0.5 * (discriminator(real).sigmoid().log() + (1 - discriminator(generator(z)).sigmoid()).log()).mean()
    loss_g = -discriminator(generator(z)).sigmoid().log().mean()
    before_d, before_g = weights_of(discriminator), weights_of(generator)
    by_d, by_g = gradients(loss_d, discriminator), gradients(loss_g, generator)
    run = PlainRun()
    calls.clear()
    move_at_once(run, generator, discriminator, sgd_g, sgd_d, real)
    assert calls == [40]  # one pass over real and fake, so that both players see the same dropout masks
    assert_moved_along(discriminator, before_d, by_d)
    assert_moved_along(generator, before_g, by_g)
    assert run.logged["loss_d"].item() == pytest.approx(2 * loss_d.item())
    assert run.logged["loss_g"].item() == pytest.approx(loss_g.item())


def test_in_turns_the_generator_moves_against_the_new_discriminator(digits):
    calls, z, generator, discriminator, sgd_g, sgd_d = players("leaky")
    real = digits[:20].double() / 127.5 - 1
    before_d, before_g = weights_of(discriminator), weights_of(generator)
    loss_d = -(discriminator(real).sigmoid().log() + (1 - discriminator(generator(z)).sigmoid()).log()).mean()
    by_d = gradients(loss_d, discriminator)
    with torch.no_grad():
        for weight, gradient in zip(discriminator.parameters(), by_d, strict=True):
            weight.sub_(RATE * gradient)
    by_g = gradients(-discriminator(generator(z)).sigmoid().log().mean(), generator)
    with torch.no_grad():
        for weight, value in zip(discriminator.parameters(), before_d, strict=True):
            weight.copy_(value)
    calls.clear()
    take_turns(PlainRun(), generator, discriminator, sgd_g, sgd_d, real)
    assert calls == [40, 20]
    assert_moved_along(discriminator, before_d, by_d)
    assert_moved_along(generator, before_g, by_g)


def test_the_likelihood_in_training_is_the_papers_estimate(digits):
    for model in MODELS:
        generator = make_generator(Config(model=model))
        z, images = generator.latent(1500, "cpu"), digits / 255
        found = held_out_likelihood(generator, z, images)
        assert generator.training
        expected = parzen(sampler.images(generator.eval(), z).float() / 255, images, images).mean
        assert found == pytest.approx(expected, abs=0.05)  # samples in float64 round some pixels otherwise


def test_the_papers_game_does_not_collapse(digits):
    """Public PyTorch versions of it soon make one image of every z. Here, on three seeds, the images of 100 z spread 28% to 59%
    as much as real digits after 1200 steps, having gone through 2% on the way; a collapsed generator stays there."""
    generator, discriminator = make_generator(Config(model="maxout")), DISCRIMINATORS["maxout"]()
    generator.start_from_marginals(digits)
    optimizers = [torch.optim.SGD(network.parameters(), 0.1, momentum=0.5, fused=True) for network in (generator, discriminator)]
    run, rng = PlainRun(), torch.Generator().manual_seed(0)
    for _ in range(200):
        for real in data.batches(digits, 50, rng):
            move_at_once(run, generator, discriminator, *optimizers, real)
    with torch.no_grad():
        spread = generator(generator.latent(100, "cpu")).std(0).mean()
    assert spread > 0.15 * (digits / 255).std(0).mean()


def test_accuracy_counts_both_kinds():
    logits_real, logits_fake = torch.tensor([1.0, 1.0, -1.0, 0.5]), torch.tensor([-1.0, 2.0, 3.0, 4.0])
    readings = gan_mnist.readings(torch.zeros(()), torch.zeros(()), logits_real, logits_fake)
    assert readings["accuracy_d"].item() == 4 / 8


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="no model named 'maxuot': give --model one of maxout, batchnorm, leaky"):
        make_generator(Config(model="maxuot"))
