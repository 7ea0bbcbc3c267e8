"""The convolutional GAN of 2014: its nets against the authors' settings, its step against plain autograd, and short runs on photographs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_bar_fits, assert_one_sentence
from runs import PlainRun, assert_the_result, checkpoint, committed, pictured, steps_of, weights_of
from torch import nn

import gan_cifar10_conv
from gan_cifar10_conv import (
    Config,
    Discriminator,
    Generator,
    Maxout,
    PooledMaxout,
    adam_by_inputs,
    discriminator_loss,
    generator_loss,
    make_generator,
    move_at_once,
    paper_schedule,
)
from utils.device import Dropout
from utils.known import ImageSet
from utils.layers import Columns
from utils.shell import UserError

SMALL = {"hidden": 16, "maps": 4}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_players_are_as_large_as_the_papers():
    with torch.device("meta"):  # a quarter of a gigabyte otherwise
        generator, discriminator = make_generator(Config()), Discriminator()
        papers = make_generator(Config(batch_norm=False))
    # 100-8000-8000, a transposed 5 x 5 convolution from 80 channels to 3, and a bias for each pixel
    weights_g = 101 * 8000 + 8001 * 8000 + 80 * 3 * 25 + 3 * 32 * 32
    # two pieces each: 8 x 8 from 3 to 32, 8 x 8 from 32 to 32, 5 x 5 from 32 to 192; five pieces: 4800 to 500; 500 to 1
    weights_d = (3 * 64 + 1) * 64 + (32 * 64 + 1) * 64 + (32 * 25 + 1) * 384 + (192 * 5 * 5 + 1) * 2500 + 501
    assert sum(weight.numel() for weight in papers.parameters()) == weights_g
    assert sum(weight.numel() for weight in generator.parameters()) == weights_g + 2 * 8000  # a scale a unit; its bias is the norm's shift
    assert sum(weight.numel() for weight in discriminator.parameters()) == weights_d
    assert [layer.p for layer in discriminator.modules() if isinstance(layer, Dropout)] == [0.2, 0.5, 0.5, 0.5, 0.5]


def test_the_pictures_within_d_are_as_large_as_the_authors():
    sizes = []
    discriminator = Discriminator(4, 8)
    for layer in discriminator.modules():
        if isinstance(layer, PooledMaxout):
            layer.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape[1:])))
    generator = Generator(**SMALL)
    fake = generator(generator.latent(7, "cpu"))
    assert fake.shape == (7, 3, 32, 32)
    assert discriminator(fake).shape == (7,)
    assert sizes == [(4, 16, 16), (4, 7, 7), (24, 5, 5)]


def test_a_pixels_own_bias_and_the_small_starting_weights():
    generator, discriminator = Generator(**SMALL, batch_norm=False), Discriminator(4, 8)
    for network, bound in ((generator, 0.05), (discriminator, 0.005)):
        for name, weight in network.named_parameters():
            assert weight.abs().max() <= (0 if "bias" in name else bound)
            if weight.numel() > 1000 and "bias" not in name:  # of which none in the last 2.5% would be a chance of 1e-11
                assert weight.min() < -0.95 * bound
                assert weight.max() > 0.95 * bound
    with torch.no_grad():
        generator.bias[1, 2, 3] = 5
    changed = generator(generator.latent(2, "cpu"))
    assert changed[0, 1, 2, 3] > 4
    z = generator.latent(100_000, "cpu")
    # Over n draws a normal number's variance strays by sqrt(2 / n), the share beyond 2, 4.55%, by sqrt(0.0455 * 0.9545 / n); n is 10^7.
    assert abs(z.var().item() - 1) < 0.0025
    assert abs((z.abs() > 2).double().mean().item() - 0.0455) < 0.0004


@pytest.mark.parametrize(("width", "padding", "pool", "size"), [(8, 4, 4, 32), (3, 1, 2, 9)])
def test_columns_and_pooled_maxout_are_the_wide_convolution_maxout_and_pooling(width, padding, pool, size):
    """Against the three one after the other, in float64."""
    layer = PooledMaxout(3 * width, 5, (width, 1), padding=0, pool=pool).double()
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    # channel k * 3 + c of a column kernel is channel c of the wide kernel's column k
    wide = layer.convolution.weight[..., 0].unflatten(1, (width, 3)).permute(0, 2, 3, 1)
    for form in (torch.contiguous_format, torch.channels_last):
        found = layer(Columns(width, padding)(images.contiguous(memory_format=form)))
        pieces = F.conv2d(images, wide, layer.convolution.bias, padding=padding)
        expected = F.max_pool2d(torch.maximum(pieces[:, :5], pieces[:, 5:]), pool, 2, ceil_mode=True)
        torch.testing.assert_close(found, expected)


def test_maxout_is_the_largest_of_its_pieces():
    layer, x = Maxout(7, 3, pieces=5).double(), torch.randn(4, 7, dtype=torch.float64)
    weight, bias = layer.linear.weight.detach(), layer.linear.bias.detach()
    expected = [[max(weight[5 * unit + piece] @ row + bias[5 * unit + piece] for piece in range(5)) for unit in range(3)] for row in x]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))


def test_the_generator_is_the_papers():
    """Rectified units, sigmoid ones, and the image that they paint by a transposed convolution."""
    generator = Generator(**SMALL, batch_norm=False).double()
    for weight in generator.parameters():
        nn.init.normal_(weight)
    first, second, paint = (layer for layer in generator.layers if hasattr(layer, "weight"))
    z = torch.randn(5, 100, dtype=torch.float64)
    units = (z @ first.weight.T + first.bias).clamp(min=0)
    pictures = 1 / (1 + (-units @ second.weight.T - second.bias).exp())
    image = F.conv_transpose2d(pictures.view(5, 4, 10, 10), paint.weight, stride=3)
    torch.testing.assert_close(generator(z), image + generator.bias)


def players():
    """In float64, without dropout, with weights large enough for every gradient to be far above the rounding."""
    generator, discriminator = Generator(**SMALL).double(), Discriminator(4, 8).double().eval()
    for network in (generator, discriminator):
        for weight in network.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
    z = generator.latent(10, "cpu").double()
    generator.latent = lambda *_: z
    return generator, discriminator, z


@pytest.mark.parametrize("scaled", [True, False])
def test_both_players_get_the_gradients_of_their_losses(scaled):
    generator, discriminator, z = players()
    real = torch.randn(10, 3, 32, 32, dtype=torch.float64)
    fake = generator(z)
    logits_real, logits_fake = discriminator(real), discriminator(fake)
    weights_g, weights_d = ([*network.parameters()] for network in (generator, discriminator))
    gradients_g = torch.autograd.grad(generator_loss(logits_fake), weights_g, retain_graph=True)
    gradients_d = torch.autograd.grad(discriminator_loss(logits_real, logits_fake) / 2, weights_d)
    before = [weight.detach().clone() for weight in weights_g + weights_d]
    sgd = [torch.optim.SGD(network.parameters(), 1.0) for network in (generator, discriminator)]
    run = PlainRun(scaler=torch.amp.GradScaler("cpu", init_scale=2**10, enabled=scaled))
    move_at_once(run, generator, discriminator, *sgd, real)
    for old, new, gradient in zip(before, weights_g + weights_d, gradients_g + gradients_d, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(old - new, gradient, rtol=1e-6, atol=1e-9)
    expected = {"loss_d": discriminator_loss(logits_real, logits_fake), "loss_g": generator_loss(logits_fake)}
    expected |= {"d_real": logits_real.sigmoid().mean(), "d_fake": logits_fake.sigmoid().mean()}
    assert {name: value.item() for name, value in run.logged.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_short_and_long_floats_agree_after_20_steps(photos):
    """At every step losses to a tenth of their range over the 20 steps (measured, three seeds: 3%), and G's weights to a fifth of their
    way (13%). Not D's: they start so small that Adam's first steps follow rounding where the gradient is next to nothing."""
    real, found = photos.float() / 255 * 4 - 1.9, {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        generator, discriminator = Generator(64, 8), Discriminator(8, 16)
        adams = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.5, 0.999)), adam_by_inputs(discriminator, 5e-4)
        start, losses = weights_of(generator), []
        for iteration in range(20):
            run = PlainRun()
            run.autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")  # noqa: B023
            move_at_once(run, generator, discriminator, *adams, real[iteration % 5 * 20 :][:20])
            losses.append(torch.stack([run.logged["loss_d"], run.logged["loss_g"]]).detach())
        found[precision] = torch.stack(losses), weights_of(generator) - start
    (losses_fp32, way_fp32), (losses_bf16, way_bf16) = found.values()
    assert (losses_bf16 - losses_fp32).abs().max() < 0.1 * (losses_fp32.amax(0) - losses_fp32.amin(0)).max()
    assert (way_bf16 - way_fp32).norm() < 0.2 * way_fp32.norm()


def test_the_losses_are_the_papers():
    logits_real, logits_fake = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    d_real, d_fake = logits_real.sigmoid(), logits_fake.sigmoid()
    expected = -d_real.log().mean() - (1 - d_fake).log().mean()
    assert discriminator_loss(logits_real, logits_fake).item() == pytest.approx(expected.item())
    assert generator_loss(logits_fake).item() == pytest.approx(-d_fake.log().mean().item())


def test_the_schedule_is_the_papers():
    sgd = torch.optim.SGD([{"params": [torch.zeros(1)], "initial_lr": 0.004}], 1.0, momentum=0.1)
    for update, epoch, rate, momentum in [(0, 1, 0.004, 0.5), (100_000, 125.5, 0.004 * 1.000004**-100_000, 0.6), (10**7, 400, 1e-6, 0.7)]:
        paper_schedule(sgd, update, epoch)
        assert sgd.param_groups[0]["lr"] == pytest.approx(rate)
        assert sgd.param_groups[0]["momentum"] == pytest.approx(momentum)


def test_adam_moves_the_discriminators_units_alike_however_many_inputs_they_have():
    discriminator = Discriminator(4, 8)
    adam = adam_by_inputs(discriminator, 0.01)
    # 8 x 8 pixels of 3 channels, of 4; 5 x 5 of 4; 24 pictures of 5 x 5; 8 units
    inputs = 8 * 8 * 3, 8 * 8 * 4, 5 * 5 * 4, 24 * 5 * 5, 8
    weights = [weight for weight in discriminator.parameters() if weight.ndim > 1]
    expected = {weight: 0.01 * 100 / count for weight, count in zip(weights, inputs, strict=True)}
    expected |= {bias: 0.01 for bias in discriminator.parameters() if bias.ndim == 1}
    rates = [(weight, group["lr"]) for group in adam.param_groups for weight in group["params"]]
    assert len(rates) == len(expected)
    assert dict(rates) == pytest.approx(expected)


def test_the_papers_way_goes_with_its_optimizer():
    papers = Config(optimizer="sgd")
    constants = papers.learning_rate, papers.generator_rate, papers.batch_size, papers.average, papers.batch_norm, papers.decay
    assert constants == (0.004, 1, 128, 0, False, False)
    assert Config(optimizer="sgd", learning_rate=0.1).learning_rate == 0.1


def test_the_committed_run_is_that_of_the_default_constants():
    assert committed("outputs/gan_cifar10_conv/config.json") == dataclasses.asdict(Config())


@pytest.fixture
def steps(monkeypatch):
    return steps_of(gan_cifar10_conv, monkeypatch)


@pytest.fixture
def train(photo_folder, tmp_path):
    """A run of 20 steps on the photographs."""
    small = {**SMALL, "channels": 4, "units": 8, "batch_size": 10, "epochs": 2, "data": str(photo_folder)}
    small |= {"root": str(tmp_path), "name": "run", "device": "cpu"}
    return lambda **constants: gan_cifar10_conv.train(Config(**small | constants))


@pytest.mark.parametrize("decay", [True, False])
def test_adams_rates_fall_evenly_to_zero(decay, steps, train):
    train(decay=decay)
    starting = [0.0002, *[group["lr"] for group in adam_by_inputs(Discriminator(4, 8), 0.0005).param_groups]]
    for step, (_, settings, _) in enumerate(steps):
        expected = [(rate * (1 - step / 20 if decay else 1), 0.5) for rate in starting]
        assert settings == [pytest.approx(pair, rel=1e-12) for pair in expected]
    assert len(steps) == 20


def test_sgd_follows_the_papers_schedule(steps, train):
    train(optimizer="sgd", learning_rate=0.01, generator_rate=2.0)
    for step, (_, settings, _) in enumerate(steps):
        expected = [(rate / 1.000004**step, 0.5 + 0.2 * (step // 10) / 249) for rate in (0.02, 0.01)]
        assert settings == [pytest.approx(pair, rel=1e-12) for pair in expected]
    assert len(steps) == 20


def test_a_run_sees_all_but_the_images_held_out_with_about_mean_0_and_deviation_1(steps, train, photos, monkeypatch):
    monkeypatch.setattr("utils.data.load_known", lambda *_: ImageSet(photos, torch.arange(100) % 10))
    train(data="cifar10", held_out=20, epochs=1)
    real = torch.cat([given[-1] for given, _, _ in steps])
    shown = {image.numpy().tobytes() for image in ((real + 1.9) / 4 * 255).round().byte()}
    assert shown == {photo.numpy().tobytes() for photo in photos[:80]}
    assert abs(real.mean()) < 0.1  # 80 photographs stray that far from all 50,000
    assert abs(real.std() - 1) < 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_trains_on_a_folder_of_photographs(optimizer, photo_folder, tmp_path, shell):
    sizes = ["--hidden", "16", "--maps", "4", "--channels", "4", "--units", "8", "--batch-size", "10", "--epochs", "2"]
    status, said, errors = shell(
        "gan_cifar10_conv.py", "--data", photo_folder, "--root", tmp_path, "--optimizer", optimizer, "--device", "cpu", *sizes
    )
    assert status == 0, errors
    assert "100 images an epoch" in said
    assert "loss D" in assert_bar_fits(errors)
    for path in ("gif/gan_cifar10_conv.gif", "models/gan_cifar10_conv.safetensors", "outputs/gan_cifar10_conv/epoch_0002.png"):
        assert (tmp_path / path).exists()


@pytest.mark.parametrize(
    ("constant", "value", "said"),
    [
        ("optimizer", "rmsprop", "adam, sgd"), ("hidden", "0", "1 to 65,536"), ("maps", "100000", "1 to 65,536"),
        ("channels", "0", "1 to 65,536"), ("units", "-1", "1 to 65,536"), ("average", "2", "from 0 to 1"),
        ("learning-rate", "0", "above zero"), ("generator-rate", "nan", "above zero"), ("batch-size", "1", "at least 2"),
    ],
)  # fmt: skip
def test_constants_that_make_no_sense_are_refused(constant, value, said, photo_folder, tmp_path, shell):
    status, _, errors = shell("gan_cifar10_conv.py", "--data", photo_folder, "--root", tmp_path, f"--{constant}", value)
    assert_one_sentence(status, errors, constant.replace("-", "_"), said, f"--{constant}")


def test_a_generator_that_is_too_large_is_refused_before_it_takes_memory():
    with pytest.raises(UserError, match="hidden is 1000000"):
        make_generator(Config(hidden=1_000_000))
    with pytest.raises(UserError, match="hidden and maps make 48,000,000,000 weights"):
        make_generator(Config(maps=60_000))
    with pytest.raises(UserError, match="channels and units make 307,200,000,000 weights"):
        make_generator(Config(channels=32_000))
    with pytest.raises(UserError, match="channels and units make 1,572,864,000 weights"):
        make_generator(Config(units=65_536))


def test_the_result_is_the_average_of_the_players_with_statistics_of_its_own(steps, train, tmp_path, monkeypatch):
    monkeypatch.setattr(gan_cifar10_conv, "AVERAGED_EVERY", 3)
    shown = pictured(monkeypatch)
    train(average=0.5)
    average = steps[0][2].double()
    for number, (_, _, weights) in enumerate(steps[3::3], 1):
        average += (weights - average) / (1 + 0.5 * number)
    result = Generator(**SMALL)
    result.load_state_dict(checkpoint(tmp_path)["generator"])
    torch.testing.assert_close(weights_of(result).double(), average, rtol=1e-4, atol=1e-6)
    assert_the_result(result, shown, tmp_path)
    parts = [result.layers[0](part) for part in result.latent(2000, "cpu", torch.Generator().manual_seed(0)).split(500)]
    torch.testing.assert_close(result.layers[1].running_mean, torch.stack([part.mean(0) for part in parts]).mean(0))
    torch.testing.assert_close(result.layers[1].running_var, torch.stack([part.var(0) for part in parts]).mean(0))


def test_without_an_average_the_result_is_the_player(steps, train, tmp_path, monkeypatch):
    shown = pictured(monkeypatch)
    train(average=0.0)
    (_, player, *_), _, _ = steps[-1]
    assert_the_result(player, shown, tmp_path)
