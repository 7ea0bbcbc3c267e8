"""InfoGAN: its information against what is worked out by hand, whose weights it moves, and the matching of categories with digits."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_bar_fits, assert_one_sentence
from PIL import Image
from runs import PlainRun, result

import infogan_mnist
import sampler
from infogan_mnist import (
    Config,
    Discriminator,
    Generator,
    category_information,
    codes,
    continuous_information,
    distorted,
    make_generator,
    match,
    shared_information,
    unsupervised_error,
    with_codes,
)
from utils.known import ImageSet
from utils.models import save_generator
from utils.shell import UserError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_players_are_as_large_as_the_papers():
    generator, discriminator = make_generator(Config()), Discriminator()
    # FC 74-1024-6272 with batch norm, 4 x 4 upconvolutions 128-64-1 with one between
    weights_g = 75 * 1024 + 2 * 1024 + 1025 * 6272 + 2 * 6272 + 16 * 128 * 64 + 64 + 2 * 64 + 16 * 64 + 1
    # 4 x 4 convolutions 1-64-128, FC 6272-1024; D: 1; Q: 128 and the likelihoods of ten categories, two means, two deviations
    weights_d = 17 * 64 + 16 * 64 * 128 + 128 + 2 * 128 + 6273 * 1024 + 2 * 1024 + 1025 + 1025 * 128 + 2 * 128 + 129 * 14
    assert sum(weight.numel() for weight in generator.parameters()) == weights_g
    assert sum(weight.numel() for weight in discriminator.parameters()) == weights_d
    fake = generator(generator.latent(7, "cpu"))
    assert fake.shape == (7, 1, 28, 28)
    assert 0 <= fake.min() < fake.max() <= 1
    logits, reading = discriminator(fake)
    assert (logits.shape, reading.shape) == ((7,), (7, 14))


def test_z_is_noise_and_codes():
    z = Generator(8).latent(20_000, "cpu")
    category, continuous = codes(z)
    assert z.shape == (20_000, 74)
    assert z[:, 62:72].sum(1).eq(1).all()
    assert (continuous.abs() <= 1).all()
    # A category's share of n = 20,000 has the deviation sqrt(0.1 * 0.9 / n) = 0.002, a uniform number's mean 0.577 / sqrt(n) = 0.004.
    assert (category.bincount(minlength=10) / len(z) - 0.1).abs().max() < 0.01
    assert continuous.mean(0).abs().max() < 0.02
    other, numbers = torch.randint(10, (20_000,)), torch.rand(20_000, 2)
    changed = with_codes(z, other, numbers)
    assert torch.equal(changed[:, :62], z[:, :62])
    assert all(torch.equal(a, b) for a, b in zip(codes(changed), (other, numbers), strict=True))
    assert torch.equal(with_codes(z, category, continuous), z)


def reading_of(probabilities, means, deviations):
    """What Q would have to say for these to be read from it."""
    probabilities, means, deviations = (torch.as_tensor(values, dtype=torch.float64) for values in (probabilities, means, deviations))
    return torch.cat([probabilities.log(), means, deviations.log()], 1)


def test_the_bound_is_that_worked_out_by_hand():
    half, sure = [0.5, 0.5 / 9, *[0.5 / 9] * 8], [1 - 9e-12, *[1e-12] * 9]
    reading = reading_of([half, sure], [[0.0, 0.5], [1.0, -1.0]], [[1.0, 0.1], [0.5, 2.0]])
    category = torch.tensor([0, 0])
    assert category_information(reading, category).item() == pytest.approx((math.log(0.5) + math.log(1)) / 2 + math.log(10))
    assert category_information(reading, torch.tensor([1, 0])).item() == pytest.approx(math.log(0.5 / 9) / 2 + math.log(10))
    continuous = torch.tensor([[0.3, 0.4], [0.5, 0.0]], dtype=torch.float64)

    def log_normal(x, mean, deviation):
        return math.log(math.exp(-((x - mean) ** 2) / (2 * deviation**2)) / (deviation * math.sqrt(2 * math.pi)))

    logs = [log_normal(0.3, 0, 1), log_normal(0.4, 0.5, 0.1), log_normal(0.5, 1, 0.5), log_normal(0, -1, 2)]
    assert continuous_information(reading, continuous).item() == pytest.approx(sum(logs) / 2 + 2 * math.log(2))


def test_the_bound_is_the_information_where_q_knows_the_posterior_and_below_it_elsewhere():
    """A channel that passes the category on in 7 of 10 cases, and else any of the ten, each as often: all its cases, once each."""
    cases = [(sent, received) for sent in range(10) for received in [sent] * 70 + [*range(10)] * 3]
    sent, received = torch.tensor(cases).T
    joint = torch.zeros(10, 10, dtype=torch.float64).index_put_((received, sent), torch.tensor(1.0, dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    information = (joint * (joint / (joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True))).log()).sum().item()
    posterior = joint / joint.sum(1, keepdim=True)

    def bound(q):
        return category_information(reading_of(q[received], np.zeros((len(sent), 2)), np.ones((len(sent), 2))), sent).item()

    assert bound(posterior) == pytest.approx(information)
    assert bound(posterior * 0.9 + 0.01) < information
    assert bound(torch.full((10, 10), 0.1)) == pytest.approx(0)


def test_the_information_reaches_g_the_body_and_q_and_nothing_else():
    generator, discriminator = Generator(8), Discriminator(8)
    z = generator.latent(20, "cpu")
    fake = generator(z)
    category, continuous = codes(z)
    for information in (
        category_information(discriminator(distorted(fake, 1.0))[1], category),
        continuous_information(discriminator(fake)[1], continuous),
    ):
        for network in (generator, discriminator):
            names, weights = zip(*network.named_parameters(), strict=True)
            found = torch.autograd.grad(information, weights, retain_graph=True, allow_unused=True)
            for name, weight, gradient in zip(names, weights, found, strict=True):
                assert (gradient is not None) == (not name.startswith("d.")), name
                # (A bias before batch norm has none but by rounding.)
                assert gradient is None or weight.ndim == 1 or gradient.abs().max() > 1e-6, name


def test_shared_information_is_all_or_nothing():
    sure = 50.0 * torch.eye(10, 14, dtype=torch.float64).repeat(5, 1)
    assert shared_information(PlainRun(), sure, sure).item() == pytest.approx(math.log(10))
    # One side always says the same: in the symmetric joint 0.1 are (0, 0), and each other category has 0.05 with 0 on either side.
    mixed = 0.1 * math.log(0.1 / 0.55**2) + 0.9 * math.log(0.05 / (0.55 * 0.05))
    assert shared_information(PlainRun(), sure[:10], sure[:1].expand(10, -1)).item() == pytest.approx(mixed)
    undecided = torch.zeros_like(sure)
    assert shared_information(PlainRun(), sure, undecided).item() == pytest.approx(0)
    two = sure[:2].repeat(5, 1)
    assert shared_information(PlainRun(), two, two).item() == pytest.approx(math.log(2))
    assert shared_information(PlainRun(), 1e9 * sure.float(), 1e9 * sure.float()).isfinite()


RATE = 0.01


@pytest.mark.parametrize(("info_weight", "scaled"), [(0.0, False), (0.7, False), (0.7, True)])
def test_a_step_moves_both_players_from_the_old_weights(info_weight, scaled, digits, monkeypatch):
    monkeypatch.setattr(infogan_mnist, "distorted", lambda images, strength: images.flip(3) * strength)
    config = Config(info_weight=info_weight, continuous_weight=0.3, distortion=0.9, agreement=0.6, hidden=8)
    generator, discriminator = Generator(8).double(), Discriminator(8).double()
    z = generator.latent(20, "cpu").double()
    generator.latent = lambda *_: z
    real = digits[:20].double() / 255
    category, continuous = z[:, 62:72], z[:, 72:]
    # Equation 6, each player at the old weights; G with the non-saturating loss.
    fake = generator(z)
    views = (real, fake, real.flip(3) * 0.9, fake.flip(3) * 0.9)
    (d_real, first), (d_fake, seen), (_, second), (_, seen_distorted) = (discriminator(images) for images in views)
    bound = (category * seen_distorted[:, :10].softmax(1).log()).sum(1).mean() + math.log(10)
    density = torch.distributions.Normal(seen[:, 10:12], seen[:, 12:].exp())
    bound = bound + 0.3 * (density.log_prob(continuous).sum(1).mean() + 2 * math.log(2))
    joint = torch.einsum("nk,nl->kl", first[:, :10].softmax(1), second[:, :10].softmax(1)) / 20
    joint = (joint + joint.T) / 2
    shared = (joint * joint.log()).sum() - 2 * (joint.sum(0) * joint.sum(0).log()).sum()
    loss_d = -d_real.sigmoid().log().mean() - (1 - d_fake.sigmoid()).log().mean() - info_weight * (bound + 0.6 * shared)
    loss_g = -d_fake.sigmoid().log().mean() - info_weight * bound
    expected = {}
    for network, loss in ((discriminator, loss_d), (generator, loss_g)):
        weights = list(network.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, retain_graph=True), strict=True):
            expected[weight] = weight.detach() - RATE * gradient
    run = PlainRun(scaler=torch.amp.GradScaler("cpu", init_scale=2**10, enabled=scaled))
    optimizers = [torch.optim.SGD(network.parameters(), RATE) for network in (generator, discriminator)]
    infogan_mnist.move_at_once(run, generator, discriminator, *optimizers, real, config)
    for weight, value in expected.items():
        torch.testing.assert_close(weight.detach(), value, rtol=0, atol=1e-12)
    assert run.logged["info_shared"].item() == pytest.approx(shared.item())


def test_no_distortion_changes_nothing_and_any_is_each_images_own(digits):
    images = digits[:50].float() / 255
    torch.testing.assert_close(distorted(images, 0.0), images, atol=1e-5, rtol=0)
    same = images[:1].repeat(50, 1, 1, 1)
    moved = distorted(same, 1.0)
    assert moved.shape == same.shape
    assert 0 <= moved.min() < moved.max() <= 1 + 1e-6
    assert len(torch.unique((moved * 255).round(), dim=0)) == 50
    assert (moved - same).abs().mean() < (images - same).abs().mean()  # still more like that digit than like others


@pytest.mark.parametrize(
    ("number", "amount", "expected"),
    [
        (0, math.pi / 2, lambda x: x.rot90(1, (2, 3))),  # a quarter turn
        (1, 2, lambda x: torch.stack([F.pad(x[:, :, row], (27, 27))[..., 2 * row : 2 * row + 28] for row in range(28)], 2)),
        (2, math.log(2), lambda x: F.pad(F.avg_pool2d(x, (1, 2)), (7, 7, 0, 0))),  # half as wide
        (3, math.log(2), lambda x: F.pad(F.avg_pool2d(x, (2, 1)), (0, 0, 7, 7))),  # half as high
        (4, -2 / 14, lambda x: x.roll(2, 3)),  # two pixels to the right
        (5, 3 / 14, lambda x: x.roll(-3, 2)),  # three up
    ],
)
def test_distortions_move_images_as_said(number, amount, expected, digits, monkeypatch):
    images = torch.zeros(4, 1, 28, 28)
    images[:, :, 4:24, 4:24] = digits[:4, :, 4:24, 4:24] / 255
    chance = torch.zeros(4, 6)
    chance[:, number] = amount / infogan_mnist.DISTORTION[number]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: chance)
    torch.testing.assert_close(distorted(images, 1.0), expected(images), atol=1e-4, rtol=0)


def test_matching_finds_a_planted_permutation():
    planted = torch.randperm(10)
    labels = torch.randint(10, (2000,))
    categories = planted.argsort()[labels]
    noisy = torch.where(torch.rand(2000) < 0.4, torch.randint(10, (2000,)), categories)
    assert torch.equal(match(categories, labels), planted)
    assert torch.equal(match(noisy, labels), planted)
    # Two digits in one category: only one of them can have it, though both would be the likeliest there.
    labels = torch.tensor([4] * 60 + [9] * 50 + [3] * 20)
    categories = torch.tensor([1] * 110 + [7] * 20)
    digits = match(categories, labels)
    assert (digits[1], digits[7]) == (4, 3)
    assert sorted(digits.tolist()) == list(range(10))


def test_the_error_is_of_test_images_and_the_matching_of_training_images(monkeypatch):
    monkeypatch.setattr(infogan_mnist, "read_categories", lambda _, images: images)  # which say their category here
    monkeypatch.setattr(infogan_mnist, "MATCHED", 300)
    categories, labels = torch.arange(10).repeat(100), (torch.arange(10).repeat(100) + 3) % 10
    labels[300:] = 0
    train, test = ImageSet(categories, labels), torch.arange(10).repeat(20)
    right = (test + 3) % 10
    right[:25] += 1
    for planted, expected in ((right % 10, 25 / 200), ((test + 4) % 10, 1.0)):
        error, digits = unsupervised_error(None, train, ImageSet(test, planted))
        assert error == expected
        assert digits.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]


def test_q_reads_in_evaluation_mode_and_goes_back(digits):
    discriminator = Discriminator(8)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    whole = infogan_mnist.read_categories(discriminator, digits)
    assert torch.equal(infogan_mnist.read_categories(discriminator, digits[:1]), whole[:1])
    assert discriminator.training
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_labels_measure_a_run_and_name_its_categories_but_teach_it_nothing(digits, tmp_path, monkeypatch, capsys):
    measured, results = [], []
    # So short a run leaves Q with one category for all; instead images have any, whatever Q says.
    monkeypatch.setattr(infogan_mnist, "read_categories", lambda _, images: images.sum((1, 2, 3)) % 10)
    monkeypatch.setattr(infogan_mnist, "unsupervised_error", lambda *of: measured.append(unsupervised_error(*of)) or measured[-1])
    for root, labels in (("a", torch.arange(300) % 10), ("b", torch.arange(300) // 30)):
        monkeypatch.setattr("utils.data.load", lambda *_, labels=labels, **__: ImageSet(digits, labels))
        infogan_mnist.train(Config(epochs=2, batch_size=50, hidden=8, name="run", root=str(tmp_path / root), device="cpu"))
        found = result(tmp_path / root)
        assert {file for file, _ in found["weights"]} == {"run", "discriminator"}
        errors, last = zip(*measured[-2:], strict=True)
        assert [float(row.pop("error")) for row in found["rows"]] == pytest.approx(errors)
        assert last[-1].tolist() != list(range(10))
        assert found["weights"].pop(("run", "digits")) == last[-1].numpy().tobytes()
        results.append(found)
    assert measured[1][0] != measured[3][0]
    assert results[0] == results[1]
    shown = {"info_category", "info_continuous", "info_shared"}
    assert shown <= set(results[0]["rows"][0])
    assert shown | {"error"} <= {column for panel in infogan_mnist.CURVES.values() for column in panel}
    assert re.fullmatch(r"loss D .* G .* info .* \+ .* error \S+ ", assert_bar_fits(capsys.readouterr().err))


def test_a_run_without_information_has_a_name_of_its_own_and_rates_that_fall(digit_folder, tmp_path):
    infogan_mnist.train(Config(info_weight=0, epochs=2, batch_size=50, hidden=8, data=str(digit_folder), root=str(tmp_path), device="cpu"))
    parts = torch.load(tmp_path / "outputs" / "infogan_mnist_plain" / "checkpoint.pt", weights_only=True)["parts"]
    for name, rate in (("adam_g", Config.generator_rate), ("adam_d", Config.learning_rate)):
        (group,) = parts[name]["param_groups"]
        assert group["lr"] == pytest.approx(rate / 12)  # before the last of two epochs' 12 steps
        assert tuple(group["betas"]) == (0.5, 0.999)


def test_a_resumed_run_with_labels_ends_as_one_never_stopped(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.load", lambda *_, **__: ImageSet(digits, torch.arange(300) % 10))
    config = Config(batch_size=50, hidden=8, decay=0.0, name="run", device="cpu")
    for root, epochs, resume in (("whole", 2, False), ("parts", 1, False), ("parts", 2, True)):
        infogan_mnist.train(replace(config, root=str(tmp_path / root), epochs=epochs, resume=resume))
    assert result(tmp_path / "whole") == result(tmp_path / "parts")


def test_a_walk_keeps_to_categories_and_codes(weights, tmp_path, shell):
    generator = sampler.load(weights)[2]
    a, b = generator.latent(2, "cpu").split(1)
    halfway = sampler.between(a, b, 0.5, generator.noise, generator.coded)
    torch.testing.assert_close(halfway[:, 62:], (a + b)[:, 62:] / 2)
    assert halfway[:, :62].norm() > 0.9 * min(a[:, :62].norm(), b[:, :62].norm())
    out = tmp_path / "walk.gif"
    assert shell("sampler.py", "interpolate", weights, "--rows", 1, "--columns", 2, "--points", 2, "--steps", 2, "--out", out)[0] == 0


@pytest.fixture
def weights(tmp_path):
    generator = Generator(8)
    generator.digits.copy_(torch.arange(10).flip(0))
    save_generator(tmp_path / "a.safetensors", generator, "infogan_mnist", Config(hidden=8))
    return tmp_path / "a.safetensors"


def test_codes_go_through_export_and_back(weights, tmp_path, shell):
    assert shell("sampler.py", "export", weights, "--count", 130, "--seed", 5, "--codes", "--out", tmp_path / "a.npz")[0] == 0
    assert shell("sampler.py", "export", weights, "--count", 130, "--seed", 5, "--out", tmp_path / "b.npz")[0] == 0
    found, without = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert set(found) == {"images", "category", "continuous"}
    assert set(without) == {"images"}
    assert (found["category"].dtype, found["category"].shape) == (np.int64, (130,))
    assert (found["continuous"].dtype, found["continuous"].shape) == (np.float32, (130, 2))
    assert np.array_equal(found["images"], without["images"])
    generator = sampler.load(weights)[2]
    noise = sampler.latents(generator, 130, 5) * torch.cat([torch.ones(62), torch.zeros(12)])
    z = with_codes(noise, torch.from_numpy(found["category"]), torch.from_numpy(found["continuous"]))
    assert np.array_equal(sampler.images(generator, z).permute(0, 2, 3, 1).numpy(), found["images"])


def test_the_codes_are_drawn_a_digit_a_row(weights, tmp_path, shell, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, _ = shell("sampler.py", "codes", weights, "--columns", 5)
    assert status == 0
    assert said.split() == ["outputs/a/code_1.png", "outputs/a/code_2.png", "gif/a_codes.gif"]
    generator = sampler.load(weights)[2]
    z = sampler.latents(generator, 1, 0)
    for code in range(2):
        picture = np.asarray(Image.open(f"outputs/a/code_{code + 1}.png"))
        assert picture.shape == (10 * 30 + 2, 5 * 30 + 2)
        for row, column in ((0, 0), (3, 4)):
            continuous = torch.zeros(1, 2)
            continuous[0, code] = -2 + column
            tile = sampler.images(generator, with_codes(z, torch.tensor([9 - row]), continuous))[0, 0].numpy()
            top, left = 2 + 30 * row, 2 + 30 * column
            assert np.array_equal(picture[top : top + 28, left : left + 28], tile)
    with Image.open("gif/a_codes.gif") as gif:
        assert gif.n_frames == 2 * sampler.CODE_FRAMES
        assert gif.info["loop"] == 0
        for code in range(2):
            gif.seek(code * sampler.CODE_FRAMES + sampler.CODE_FRAMES // 4)  # where the sine is 1
            continuous = torch.zeros(1, 2)
            continuous[0, code] = 2
            tile = sampler.images(generator, with_codes(z, torch.tensor([9 - 3]), continuous))[0, 0].numpy()
            found = np.asarray(gif.convert("L"))[-302:][2 + 30 * 3 : 30 + 30 * 3, 2:30]
            assert np.abs(found.astype(int) - tile).max() <= 9  # of 16 shades


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["codes", "{weights}", "--columns", 0], "columns is 0"),
        (["codes", "{weights}", "--reach", "nan"], "reach is nan"),
        (["codes", "{weights}", "--reach", "1e39"], "expected at most 100"),
        (["codes", "{weights}", "--seed", -1], "seed is -1"),
        (["codes", "{weights}", "--out", "/dev/null/a"], "can't write"),
        (["codes", "{plain}"], "has no codes: give the file of an InfoGAN"),
        (["export", "{plain}", "--codes", "--out", "{folder}/a.npz"], "has no codes"),
        (["export", "{weights}", "--codes", "--out", "{folder}/pngs/"], "PNGs hold no codes"),
    ],
)
def test_bad_code_arguments_are_refused_in_one_sentence(weights, tmp_path, shell, monkeypatch, arguments, words):
    import gan_mnist

    plain = tmp_path / "plain.safetensors"
    save_generator(plain, gan_mnist.make_generator(gan_mnist.Config(model="leaky")), "gan_mnist", gan_mnist.Config(model="leaky"))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    status, _, said = shell("sampler.py", *(str(a).format(weights=weights, plain=plain, folder=tmp_path) for a in arguments))
    assert_one_sentence(status, said, words)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--info-weight", "-1"], "info_weight is -1"),
        (["--continuous-weight", "nan"], "continuous_weight is nan"),
        (["--distortion", "inf"], "distortion is inf"),
        (["--agreement", "-0.5"], "agreement is -0.5"),
        (["--hidden", "0"], "hidden is 0, expected 1 to 65,536"),
        (["--batch-size", "1"], "expected at least 2 to normalise over"),
    ],
)
def test_constants_that_make_no_sense_are_refused_in_one_sentence(tmp_path, shell, digit_folder, arguments, words):
    command = ["infogan_mnist.py", "--data", digit_folder, "--root", tmp_path, "--device", "cpu", *arguments]
    status, _, said = shell(*command)
    assert_one_sentence(status, said, words)


def test_a_header_with_an_impossible_size_is_refused(weights):
    for hidden in (-1, 10**15):
        save_generator(weights, Generator(8), "infogan_mnist", Config(hidden=hidden))
        with pytest.raises(UserError, match="hidden is"):
            sampler.load(weights)
