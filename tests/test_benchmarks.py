"""The benchmarks' arithmetic, on a few digits; their timings are for the machine that they run on."""

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import tyro
from conftest import PROJECT
from PIL import Image
from runs import PlainRun
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import gan_ring
import infogan_mnist
import sampler
import score
from benchmarks import classifiers, dcgan, infogan, likelihood, normal, plain, precision, ring, scaling, throughput
from benchmarks.throughput import Stopwatch, flops_per_image, spread
from utils.known import ImageSet
from utils.models import read_facts, read_generator
from utils.scores import parzen


@pytest.mark.parametrize("model", ["leaky", "maxout"])
def test_the_operations_needed_are_those_that_pytorch_counts(model, digit_folder, tmp_path, capsys):
    constants = {"model": model, "data": str(digit_folder), "root": str(tmp_path), "device": "cpu", "epochs": 1, "batch_size": 50}
    with FlopCounterMode(display=False) as counter:
        gan_mnist.train(gan_mnist.Config(**constants))
    trained = len(list(digit_folder.iterdir())) // 50 * 50
    picture = 100 * 2 * (100 * 1200 + 1200 * 1200 + 1200 * 784)
    counted = (counter.get_total_flops() - picture) / trained
    # The paper's one backward pass for G goes through D's real half too, where the gradient is 0: not needed, but counted.
    zeros = 2 * (784 * 1200 + 240 * 1200 + 240) if model == "maxout" else 0
    assert counted == flops_per_image(model) + zeros


def test_the_stopwatch_sees_backward_operations_too():
    weight = torch.ones(2, 2, requires_grad=True)
    with Stopwatch() as stopwatch:
        (weight @ weight).sum().backward()
    assert stopwatch.calls["mm"] == 3  # one forwards, two backwards
    assert stopwatch.seconds["mm"] > 0


def test_a_spread_is_a_median_and_a_range():
    assert spread([3.0, 1.0, 20.0], ".1f") == "3.0 (1.0-20.0)"


def test_the_comparison_of_precisions_pairs_each_column_with_its_own(digits, tmp_path, monkeypatch, capsys):
    found = ImageSet(digits.repeat(40, 1, 1, 1), None)
    monkeypatch.setattr("utils.data.load", lambda *_, **__: found)
    monkeypatch.setattr(precision, "pick_precision", lambda *_: ("fp32", ""))
    with pytest.raises(precision.UserError, match="nothing to compare"):
        precision.main(precision.Comparison())
    monkeypatch.setattr(precision, "pick_precision", lambda *_: ("bf16", ""))
    with pytest.raises(precision.UserError, match="seeds is 1, expected at least 2"):
        precision.main(precision.Comparison(seeds=1))

    def measure(path, *_, **__):  # numbers of the weights that are far from the others; tests/test_score.py has the real ones
        size = sum(weight.square().sum().item() for weight in read_generator(path)[2].values())
        return {"samples": {"log_likelihood": -size, "frechet": 3 * size}}, None

    monkeypatch.setattr("score.measure", measure)
    precision.main(precision.Comparison("leaky", epochs=1, seeds=2, out=tmp_path / "grids.png"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["seed", "---", "0", "1", "mean", "standard deviation"]
    for row in rows[2:4]:
        values = [float(value) for value in row[1:]]
        # A few steps apart by rounding alone: far closer than one column is to the next.
        assert values[:5] == pytest.approx(values[5:], rel=0.1, abs=0.05)
        assert len({round(value, 1) for value in values[:5]}) == 5
    first, second, mean = (float(rows[number][1]) for number in (2, 3, 4))
    assert mean == pytest.approx((first + second) / 2, abs=0.001)
    with Image.open(tmp_path / "grids.png") as page:
        assert min(page.size) > 2 * 280  # two precisions across, two seeds down


def cells(said):
    """The rows of a Markdown table, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]]


def test_the_table_of_the_cures_has_a_row_for_each(monkeypatch, capsys):
    monkeypatch.setattr(normal, "last_row", lambda _, seed, **c: {"w1": 0.01 * seed, "ks": 0.5, "std": 1.0 + seed, "seconds": 3.0, **c})
    normal.main(normal.Table(seeds=3))
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(normal.ROWS)
    assert rows[0][1:] == ["0.0100", "0.0200", "0.5000", "0.5000", "1.000-3.000", "3.0", "3.0"]
    with pytest.raises(normal.UserError, match="no row named luck"):
        normal.main(normal.Table(rows=("normal", "luck")))


def test_a_row_is_of_a_real_run():
    last = normal.last_row(normal.gan_normal, epochs=1, batch_size=32, target="uniform")
    assert last["epoch"] == 1
    assert 0 < last["ks"] < 1


def test_the_table_of_the_ring_names_each_seeds_modes(monkeypatch, capsys):
    monkeypatch.setattr(ring, "last_row", lambda _, seed, **__: {"modes": 8.0 - seed, "high_quality": 0.9 + seed / 100, "seconds": 20.0})
    ring.main(ring.Table(seeds=3))
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(ring.ROWS)
    assert rows[0][1:] == ["8 7 6", "91.0%", "90.0%", "20.0"]
    with pytest.raises(normal.UserError, match="no row named luck"):
        ring.main(ring.Table(rows=("luck",)))


def test_the_table_of_infogan_names_each_seeds_error(monkeypatch, capsys):
    information = {"info_category": 2.25, "info_continuous": 1.5, "info_shared": 2.0}
    monkeypatch.setattr(infogan, "last_row", lambda _, seed, **__: {"error": 0.02 + seed / 100, **information})
    infogan.main(infogan.Table(seeds=3))
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(infogan.ROWS)
    assert rows[0][1:] == ["2.0% 3.0% 4.0%", "2.25", "1.50", "2.00"]
    with pytest.raises(normal.UserError, match="no row named luck"):
        infogan.main(infogan.Table(rows=("luck",)))


def test_the_operations_infogan_needs_are_those_that_pytorch_counts():
    generator, discriminator = infogan_mnist.Generator(), infogan_mnist.Discriminator()
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (generator, discriminator)]
    with FlopCounterMode(display=False) as counter:
        infogan_mnist.move_at_once(PlainRun(), generator, discriminator, *optimizers, torch.rand(4, 1, 28, 28), infogan_mnist.Config())
    # (What copies tell D has no gradient, which saves 2e-5; the information of 10 x 10 categories costs a tenth of that.)
    assert counter.get_total_flops() / 4 == pytest.approx(flops_per_image("infogan"), rel=3e-5)


@pytest.mark.parametrize("model", ["dcgan", "modern", "conv"])
def test_the_operations_of_convolutions_are_those_that_pytorch_counts(model, monkeypatch):
    experiment, config = throughput.experiment_of(model)[0], throughput.config_of(model)
    if model == "conv":  # a hundred times fewer weights, with the same layers
        config = experiment.Config(hidden=80, maps=8)
        game = config, experiment.make_generator(config), plain.conv_discriminator()
        monkeypatch.setattr(plain, "game", lambda _: game)
    players = experiment.make_generator(config), experiment.Discriminator(*([] if model == "conv" else [config.base]))
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in players]
    monkeypatch.setattr("torch.utils.module_tracker.register_multi_grad_hook", mock.Mock())  # autograd.grad doesn't take them
    with FlopCounterMode(display=False) as counter:
        real = torch.rand(2, 3, 32, 32)
        experiment.move_at_once(PlainRun(), *players, *optimizers, real, *([] if model == "conv" else [torch.zeros(2, 0), config]))
    assert counter.get_total_flops() / 2 == pytest.approx(flops_per_image(model), rel=1e-3)


@pytest.fixture
def few(digits, monkeypatch):
    """In the place of torchvision's MNIST."""

    class Few:
        def __init__(self, *_, transform):
            self.images = digits.repeat(2, 1, 1, 1).float() / 255

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return self.images[number], 0

    monkeypatch.setattr(plain, "MNIST", Few)


def test_the_plain_recipe_of_infogan_trains_all_three_networks(few):
    epochs, generators = zip(*islice(plain.infogan_steps(), 6), strict=True)
    assert epochs == (1, 1, 1, 1, 2, 2)
    assert all(weight.grad is not None for weight in generators[-1].parameters())


@pytest.mark.parametrize("model", ["dcgan", "conv"])
def test_the_plain_recipe_trains_on_photographs(model, monkeypatch, photos):
    monkeypatch.setattr("utils.data.load", lambda *_: ImageSet(photos, torch.zeros(100, dtype=torch.int64)))
    monkeypatch.setattr(plain, "game", lambda model: small_game(model))
    epochs, generators = zip(*islice(plain.steps(model), 11), strict=True)
    assert epochs == (1,) * 10 + (2,)
    assert all(weight.grad is not None for weight in generators[-1].parameters())


@pytest.mark.parametrize("model", plain.MODELS)
def test_the_plain_recipes_layers_are_pytorchs(model):
    """But for what PyTorch hasn't, which the experiments and plain.py define."""
    for player in plain.game(model)[1:]:
        for layer in plain.plainly(player).modules():
            assert type(layer).__module__.split(".")[0] in ("torch", "benchmarks", "gan_mnist", "gan_cifar10_conv", "dcgan_cifar10")


def small_game(model):
    """The same with fewer weights and smaller batches."""
    if model == "dcgan":
        config = dcgan_cifar10.Config(recipe="paper", base=2, batch_size=10)
        discriminator = torch.nn.Sequential(*dcgan_cifar10.Discriminator(2).layers, torch.nn.Flatten(0))
        return config, dcgan_cifar10.make_generator(config), discriminator
    config = gan_cifar10_conv.Config(hidden=4, maps=2, batch_size=10)
    return config, gan_cifar10_conv.make_generator(config), plain.conv_discriminator()


def test_the_plain_convolutional_discriminator_is_ours_as_one_writes_it_down():
    ours, theirs = gan_cifar10_conv.Discriminator().eval(), plain.conv_discriminator().eval()
    weights = [weight.detach() for weight in ours.parameters()]
    weights[0] = weights[0][..., 0].unflatten(1, (8, 3)).permute(0, 2, 3, 1)
    with torch.no_grad():
        for weight, source in zip(theirs.parameters(), weights, strict=True):
            weight.copy_(source)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs(images), ours(images))


def test_the_plain_recipe_leaves_what_score_needs(few, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "load_known", lambda *_, **__: None)
    plain.main(plain.Plain(minutes=0.001, root=str(tmp_path)))
    _, config, generator = sampler.load(tmp_path / "models" / "plain_leaky.safetensors")
    assert (config.model, config.held_out) == ("leaky", 0)
    assert sampler.images(generator, sampler.latents(generator, 2, 0)).shape == (2, 1, 28, 28)
    facts = read_facts(tmp_path / "models" / "plain_leaky.safetensors")
    assert facts["command"] == "python benchmarks/plain.py --model leaky --minutes 0.001"
    assert (tmp_path / "outputs" / "plain_leaky" / "metrics.csv").read_text().startswith("epoch,seconds\n1,")


def test_the_ablation_measures_the_last_step_and_the_average(digits, monkeypatch, capsys):
    found = ImageSet(digits.repeat(2, 1, 1, 1), None)
    monkeypatch.setattr("utils.data.load", lambda *_, **__: found)
    monkeypatch.setattr("gan_mnist.SAMPLES", 300)
    monkeypatch.setattr(likelihood, "HELD_OUT", 100)
    measured = []
    monkeypatch.setattr(likelihood, "parzen", lambda samples, *sets: measured.append(samples) or parzen(samples, *sets))
    likelihood.main(likelihood.Table(rows=("the paper's rates",), epochs=5))
    ((title, *found, _),) = cells(capsys.readouterr().out)
    assert title == "the paper's rates"
    assert len(found) == 6
    for held_out, test, ones in (found[:3], found[3:]):
        assert re.fullmatch(r"-?\d+\.\d", held_out)
        assert re.fullmatch(r"-?\d+\.\d ± \d+\.\d", test)
        assert re.fullmatch(r"\d+\.\d%", ones)
    last, _, averaged, _ = measured
    assert not torch.equal(last, averaged)
    with pytest.raises(normal.UserError, match="no row named luck"):
        likelihood.main(likelihood.Table(rows=("luck",)))


@pytest.fixture
def ablation(photo_folder, monkeypatch, tmp_path):
    """Runs of benchmarks/dcgan.py that are a few steps long, whose distances are 1, 2 and so on, whose changes cost nothing, and whose
    minutes are passes over the data: what is trained, what is measured, and the table's rows."""
    trained, measured = [], []

    def run(words, **_):
        row, root, *more = words
        small = ["--data", str(photo_folder), "--batch-size", "10", "--base", "2", "--device", "cpu", "--name", "run", "--root", root]
        trained.append((row, *more))
        dcgan_cifar10.train(tyro.cli(dcgan_cifar10.Config, args=[*dcgan.WITHOUT, *dcgan.ROWS[row], *more, *small]))

    def table(capsys, **constants):
        dcgan.main(dcgan.Table(**{"seeds": 1, "minutes": (1.5, 4), "file": tmp_path / "measured.csv"} | constants))
        return cells("\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("|")))  # beside what runs say

    monkeypatch.setattr(dcgan, "command", lambda row, folder: [row, folder])
    monkeypatch.setattr(dcgan.subprocess, "run", run)
    monkeypatch.setattr(dcgan, "distance", lambda generator, _: measured.append(generator.double()) or float(len(measured)))
    monkeypatch.setattr(dcgan, "relative_speed", lambda _: 1.0)
    monkeypatch.setattr(dcgan, "IMAGES", dcgan.SPEED * 60)
    monkeypatch.setattr("utils.data.load_known", lambda *_: ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None))
    return trained, measured, table


def test_the_ablation_of_dcgan_measures_the_average_and_the_player_at_whole_epochs(ablation, capsys):
    trained, measured, table = ablation
    average, player = table(capsys, rows=(dcgan.BASE,))
    assert average == [dcgan.BASE, f"{1.5**1.585:.2f}", "5.00", "4.0"]  # of 1, 3 and 5 after 1, 2 and 4 passes: 2 ** 1.585 is 3
    assert player == [dcgan.NOT_AVERAGED, "3.00", "6.00", "4.0"]  # of 2, 4 and 6
    assert trained == [(dcgan.BASE, "--seed", "0", "--epochs", epoch, *["--resume"] * (epoch > "1")) for epoch in "124"]
    of_average, of_player = measured[:2]
    difference = (of_average.layers[0].weight - of_player.layers[0].weight).abs().max()
    assert difference > 6e-5  # the file's rounding, of numbers below 0.125, is at most 3.1e-5


def test_the_player_has_the_weights_that_play_and_a_batch_norm_of_its_own(ablation, tmp_path):
    dcgan.subprocess.run([dcgan.BASE, str(tmp_path), "--epochs", "1"])
    _, _, result = sampler.load(tmp_path / "models" / "run.safetensors")
    played = dcgan.player(result, tmp_path).state_dict()
    saved = torch.load(tmp_path / "outputs" / "run" / "checkpoint.pt", weights_only=True)["parts"]["player"]
    assert torch.equal(played["layers.0.weight"], saved["layers.0.weight"])
    assert not torch.equal(played["layers.2.running_mean"], saved["layers.2.running_mean"])


class Painter(torch.nn.Module):
    """A generator that paints the images it is given, again and again."""

    pixels = (0.0, 255.0)

    def __init__(self, images):
        super().__init__()
        self.images, self.drawn = images, 0

    def latent(self, count, device, rng):
        self.drawn += count
        return torch.arange(self.drawn - count, self.drawn)

    def forward(self, z):
        return self.images[z.long() % len(self.images)]


def test_the_distance_to_the_test_images_is_none_of_these_and_large_of_others(photos):
    test = photos.repeat(10, 1, 1, 1)
    assert abs(dcgan.distance(Painter(photos), test)) < 0.01
    assert dcgan.distance(Painter(255 - photos), test) > 1


def test_a_slower_change_gets_fewer_passes(ablation, capsys, monkeypatch):
    trained, _, table = ablation
    monkeypatch.setattr(dcgan, "relative_speed", lambda _: 0.8)
    assert table(capsys, rows=("gradient penalty",)) == [["gradient penalty, `--penalty 0.01`", "1.20", "3.20", "3.2"]]
    assert [epoch for _, _, _, _, epoch, *_ in trained] == ["1", "2", "3", "4"]  # for 1.2 and 3.2
    with pytest.raises(normal.UserError, match="'gradient penalty' has no whole epoch in 1 minutes: give longer"):
        table(capsys, rows=("gradient penalty",), minutes=(1,))


def test_speeds_are_compared_in_turns(monkeypatch):
    told = []

    @contextmanager
    def halted(command, folder):
        yield SimpleNamespace(send_signal=lambda number: told.append((folder.rsplit("/")[-1], number)))

    monkeypatch.setattr(dcgan, "TURNS", 2)
    monkeypatch.setattr(dcgan.time, "sleep", lambda seconds: told.append(seconds))
    monkeypatch.setattr(dcgan, "halted", halted)
    monkeypatch.setattr(dcgan, "images_seen", lambda folder: 300 if folder.endswith("changed") else 200)
    assert dcgan.relative_speed("no flips") == 1.5
    turn = [[(name, signal.SIGCONT), 1, (name, signal.SIGSTOP)] for name in ("changed", "base")]
    assert told == [*turn[0], *turn[1]] * 2


CLOCK = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("loss D", flush=True)
while True:
    time.sleep(0.01)
    pathlib.Path(sys.argv[1]).write_text(str(time.time()))
"""


def test_a_halted_run_does_nothing_and_has_to_save_in_the_end(tmp_path):
    clock, folder = tmp_path / "clock", str(tmp_path / "run")
    with dcgan.halted([sys.executable, "-c", CLOCK, str(clock)], folder) as run:
        while not clock.exists() or not clock.read_text():
            run.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            run.send_signal(signal.SIGSTOP)
        time.sleep(0.1)  # a signal needs a moment
        before = clock.read_text()
        time.sleep(0.2)
        assert clock.read_text() == before
    assert run.returncode == 143
    fails = dcgan.halted([sys.executable, "-c", "print('no such folder')"], folder)
    with pytest.raises(RuntimeError, match="didn't save: no such folder"), fails:
        pass


def test_the_images_seen_are_those_of_all_steps(ablation, tmp_path):
    dcgan.subprocess.run(["no flips", str(tmp_path), "--epochs", "2"])
    assert dcgan.images_seen(str(tmp_path)) == 200


def test_the_readme_shows_the_committed_ablation(tmp_path, capsys):
    for name in ("dcgan.csv", "dcgan_speed.csv"):
        with open(tmp_path / name, "wb") as copy:  # as committed: measurements of one's own add to them
            subprocess.run(["git", "show", f":benchmarks/{name}"], cwd=PROJECT, stdout=copy, check=True)
    dcgan.show(dcgan.read_runs(tmp_path / "dcgan.csv"), dcgan.read_speeds(tmp_path / "dcgan_speed.csv"), dcgan.Table().minutes)
    assert capsys.readouterr().out in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("row", dcgan.ROWS)
def test_each_row_of_dcgans_ablation_is_another_run_whose_command_makes_it_again(row):
    ours = tyro.cli(dcgan_cifar10.Config, args=dcgan.command(row, "here")[2:])
    assert (ours.root, ours.device, ours.precision, ours.decay) == ("here", "cpu", "fp32", False)
    config = tyro.cli(dcgan_cifar10.Config, args=[*dcgan.WITHOUT, *dcgan.ROWS[row]])
    assert (config == dcgan_cifar10.Config()) == (row == "augmentation and gradient penalty")
    assert tyro.cli(dcgan_cifar10.Config, args=score.command(dcgan_cifar10, config).split()[2:]) == config


def test_the_ablation_of_dcgan_measures_nothing_twice(ablation, capsys, monkeypatch):
    trained, _, table = ablation
    hinge, no_flips = "hinge loss, `--loss hinge`", "no flips, `--flips False`"
    table(capsys, rows=("no flips",), minutes=(1, 2))
    del trained[:]
    monkeypatch.setattr(dcgan, "relative_speed", lambda row: {"hinge loss": 1.0}[row])
    rows = table(capsys, rows=("hinge loss", "no flips"), minutes=(1, 2))
    assert rows == [[hinge, "3.00", "4.00", "2.0"], [no_flips, "1.00", "2.00", "2.0"]]
    assert [row for row, *_ in trained] == ["hinge loss"] * 2
    rows = table(capsys, rows=("no flips",), minutes=(1, 2), seeds=2)
    assert rows == [[hinge, "3.00 -", "4.00 -", "2.0"], [no_flips, "1.00 5.00", "2.00 6.00", "2.0"]]
    del trained[:]
    rows = table(capsys, rows=("hinge loss",), minutes=(1, 3))  # of which it hasn't the latter
    assert rows == [[hinge, "7.00 -", "8.00 -", "3.0"], [no_flips, "1.00 5.00", "- -", "3.0"]]
    assert [epoch for _, _, _, _, epoch, *_ in trained] == ["1", "3"]
    with pytest.raises(normal.UserError, match="each longer than the one before"):
        table(capsys, minutes=(3, 1))


def test_shifted_images_keep_what_they_show(digits):
    moved = classifiers.shifted(digits[:50], 2)
    assert moved.shape == (50, 1, 28, 28)
    assert moved.dtype == torch.uint8
    for before, after in zip(digits[:50], moved, strict=True):
        inner = before[:, 4:24, 4:24]
        places = [after[:, 4 + y : 24 + y, 4 + x : 24 + x] for y in range(-2, 3) for x in range(-2, 3)]
        assert sum(torch.equal(inner, place) for place in places) == 1


def test_mirroring_turns_about_half(digits):
    torch.manual_seed(0)
    turned = (classifiers.mirrored(digits) == digits.flip(3)).all((1, 2, 3)).sum()
    assert abs(turned - 150) < 44  # five deviations of 300 coins


def test_a_classifier_learns_and_is_stored_with_its_accuracy(digits, tmp_path, monkeypatch, capsys):
    bright = torch.cat([digits, 255 - digits])
    found = ImageSet(bright, torch.tensor([0] * 300 + [1] * 300))
    monkeypatch.setattr("utils.data.load", lambda *_, **__: found)
    monkeypatch.setattr(classifiers, "LEFT_OUT", 100)
    reached = classifiers.train(classifiers.Config(epochs=2, batch_size=50, out=tmp_path))
    assert reached > 0.9
    with safe_open(tmp_path / "mnist.safetensors", "pt") as file:
        assert float(file.metadata()["accuracy"]) == pytest.approx(reached, abs=1e-4)
    with pytest.raises(normal.UserError, match="no classifier of 'svhn': give --data one of mnist, cifar10"):
        classifiers.train(classifiers.Config(data="svhn"))


def test_the_ring_takes_the_time_that_its_bytes_and_rounds_take():
    assert scaling.ring_seconds([10**9], processes=2, bandwidth=1e9, latency=0) == 1
    assert scaling.ring_seconds([10**9], processes=8, bandwidth=1e9, latency=0) == 1.75
    # 14 rounds of each bucket: one of the small network, two of the large one.
    assert scaling.ring_seconds([10**6, 10**7], processes=8, bandwidth=1e15, latency=1) == pytest.approx(3 * 14)


@pytest.mark.parametrize(
    ("model", "weights", "discriminator"),
    [
        ("leaky", "gan_mnist_leaky", gan_mnist.LeakyDiscriminator()),
        ("gan_ring", "gan_ring", gan_ring.Discriminator()),
        ("dcgan modern", "dcgan_cifar10_modern", dcgan_cifar10.Discriminator(64, classes=10)),
    ],
)
def test_a_step_sends_the_gradients_of_both_players(model, weights, discriminator):
    players = sampler.load(PROJECT / "models" / f"{weights}.safetensors")[2], discriminator
    assert scaling.gradient_bytes(model) == [4 * sum(weight.numel() for weight in player.parameters()) for player in players]


def test_a_step_takes_a_gpu_as_long_as_its_kernels_or_its_products(monkeypatch):
    assert scaling.gpu_seconds("leaky", 8) == scaling.gpu_seconds("leaky", 64) < 1e-2
    monkeypatch.setattr(scaling, "LAUNCH", 0)
    assert scaling.gpu_seconds("leaky", 64) == flops_per_image("leaky") * 64 / scaling.GPU_FLOPS
