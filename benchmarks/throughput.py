"""How fast the experiments train, beside the plain recipe that tutorials teach, plain.py, with the same nets and batch size.

Each rate is taken in a process of its own, plain and ours in turns, so that neither's memory or threads help the other and both
see the same weather on a shared machine. Ours is the real `train`: all the steps of an epoch, with progress bar and logs. Both run
on the CPU.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --profile maxout
    python benchmarks/throughput.py --models infogan dcgan modern conv --rounds 3
"""

import contextlib
import csv
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import tyro
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import infogan_mnist
from benchmarks import plain as recipe
from utils.device import pick_precision
from utils.known import load_known
from utils.shell import command_line

SECONDS = 8  # that the plain recipe is timed for, after so many steps, of which the first are slower
WARM_UP, LONG_WARM_UP = 30, 10
PEAK_SIZE = 4096
# The experiment; images held out; constants. What is left makes epochs of 8 to 30 s: in shorter ones the first steps, which are slower,
# beside the last checkpoint's flushing, would count too much.
CONVOLUTIONAL: dict[str, tuple[ModuleType, int, dict[str, Any]]] = {
    "infogan": (infogan_mnist, 60_000 - 6_400, {}),
    "dcgan": (dcgan_cifar10, 50_000 - 7_680, {"recipe": "paper"}),
    "modern": (dcgan_cifar10, 50_000 - 7_680, {"recipe": "modern", "labels": False, "augment": False, "penalty": 0.0}),
    "conv": (gan_cifar10_conv, 50_000 - 2_560, {}),
}


@dataclass
class Benchmark:
    """Time the experiments against the plain recipe."""

    models: tuple[str, ...] = ("leaky", "maxout", "batchnorm", "infogan")
    """Of gan_mnist; infogan; dcgan and modern, its recipes, without labels, augmentation and penalty, which the plain one hasn't; conv, of
    gan_cifar10_conv."""
    rounds: int = 5
    """Of plain and ours in turns."""
    profile: str = ""
    """Only show where the time of this model's steps goes."""


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a new Python that ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def experiment_of(model: str) -> tuple[ModuleType, dict[str, Any]]:
    """The experiment, and the constants for its Config, with no more to do between epochs than needs be."""
    if model in CONVOLUTIONAL:
        experiment, held_out, constants = CONVOLUTIONAL[model]
        return experiment, {"held_out": held_out, **constants}
    return gan_mnist, {"model": model, "estimate_every": 0}


def config_of(model: str, **constants: Any) -> Any:
    """The Config of a model."""
    experiment, known = experiment_of(model)
    return experiment.Config(**known, **constants)


def peak(model: str, precision: str) -> float:
    """What the machine's matrix units give right now, in FLOP/s, the best of ten: on a product of 4096 x 4096; for networks of
    convolutions on one of 4 x 4, of 64 images of 256 x 28 x 28, channels last."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if model in CONVOLUTIONAL:
        shapes = (64, 256, 28, 28), (256, 256, 4, 4)
        images, kernel = (torch.randn(shape).to(dtype).to(memory_format=torch.channels_last) for shape in shapes)
        operations, compute = 2 * 64 * 25 * 25 * kernel.numel(), lambda: torch.conv2d(images, kernel)
    else:
        a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE).to(dtype)
        operations, compute = 2 * PEAK_SIZE**3, lambda: a @ b
    times = []
    with torch.no_grad():
        for _ in range(10):
            begun = time.perf_counter()
            compute()
            times.append(time.perf_counter() - begun)
    return operations / min(times)


def plain(model: str) -> float:
    """Images/s of the plain recipe."""
    steps = recipe.infogan_steps() if model == "infogan" else recipe.steps(model)
    warm_up = LONG_WARM_UP if model in CONVOLUTIONAL else WARM_UP
    for done, _ in enumerate(steps, 1):
        if done == warm_up:
            begun = time.perf_counter()
        elif done > warm_up and time.perf_counter() - begun > SECONDS:
            return (done - warm_up) * config_of(model).batch_size / (time.perf_counter() - begun)


def train_quietly(model: str, **constants: Any) -> list[dict[str, str]]:
    """The rows of metrics.csv of a run on the CPU that leaves nothing behind, and nothing on the screen."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        with mock.patch.object(infogan_mnist, "KNOWN", ()):  # nothing to measure an error on, which is no part of the steps
            experiment_of(model)[0].train(config_of(model, **constants, root=root, device="cpu"))
        with open(next(Path(root).glob("outputs/*/metrics.csv")), newline="") as file:
            return list(csv.DictReader(file))


def ours(model: str, precision: str) -> tuple[float, float]:
    """Images/s in a real run, from its second epoch to its fourth, and the process's peak memory in GB."""
    rates = [float(row["images_per_second"]) for row in train_quietly(model, precision=precision, epochs=4)[1:]]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts units of 1024 bytes
    return statistics.harmonic_mean(rates), memory / 1e9


def first_step(model: str) -> float:
    """Seconds from the command to the first losses on the screen."""
    experiment, constants = experiment_of(model)
    script = Path(experiment.__file__)
    chosen = [word for name in ("model", "recipe") if name in constants for word in (f"--{name}", constants[name])]
    with tempfile.TemporaryDirectory() as root:
        begun = time.perf_counter()
        command = [sys.executable, script, *chosen, "--root", root, "--device", "cpu"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            said = b""
            while b"loss D" not in said:
                if process.poll() is not None:
                    raise RuntimeError(f"{script} ended before its first step: {said.decode()}")
                said += process.stderr.read1()
            seconds = time.perf_counter() - begun
            process.kill()
    return seconds


def flops_per_image(model: str) -> float:
    """Multiplications and additions in the matrix products that the game needs for each real image and its fake.

    A product of N x a and a x b costs 2 N a b, forwards, for the weights' gradient, and for the input's where one is needed.
    """
    if model == "infogan":
        g, first_g = forward_flops(infogan_mnist.Generator(), 74)
        d, first_d = forward_flops(infogan_mnist.Discriminator(), 1, 28, 28)
        # D sees real and fake images and a distorted copy of each. Through the fakes G's gradient goes too, through the distorted ones
        # the information's alone, which is the same for both players.
        return 3 * g - first_g + 2 * (3 * d - first_d) + (4 * d - first_d) + 3 * d
    if model in CONVOLUTIONAL:
        _, generator, discriminator = recipe.game(model)
        g, first_g = forward_flops(generator, 100)
        d, first_d = forward_flops(discriminator, 3, 32, 32)
        return 3 * g - first_g + 2 * (3 * d - first_d) + d  # through the fakes G's gradient goes back too
    players = gan_mnist.make_generator(gan_mnist.Config(model=model)), gan_mnist.DISCRIMINATORS[model]()
    layers_g, layers_d = ([m.weight.numel() for m in player.modules() if isinstance(m, nn.Linear)] for player in players)
    move_g = 3 * sum(layers_g) - layers_g[0]  # noise needs no gradient
    move_d = 2 * (3 * sum(layers_d) - layers_d[0])  # on the real and on the fake; images need no gradient here,
    through_d = sum(layers_d) * (2 if model == "leaky" else 1)  # but here; in turns, the new D sees the fakes again
    return 2 * (move_g + move_d + through_d)


def forward_flops(network: nn.Module, *shape: int) -> tuple[int, int]:
    """Of an input of this shape: in the whole network, and in its first layer."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *shape))
    first = next(name for name, layer in network.named_modules() if hasattr(layer, "weight"))
    by_layer = counter.get_flop_counts()
    return counter.get_total_flops(), sum(by_layer[f"{type(network).__name__}.{first}"].values())


class Stopwatch(TorchDispatchMode):
    """Adds up the seconds and the calls of each of PyTorch's operations, forwards and backwards.

    PyTorch's own profiler won't do: under it, the largest copies take twenty times as long as they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        self.seconds[operation.overloadpacket.__name__] += time.perf_counter() - begun
        self.calls[operation.overloadpacket.__name__] += 1
        return result


def operations(model: str, precision: str) -> tuple[list[tuple[str, float, float]], float]:
    """Operations with their calls and milliseconds a step, the slowest first; and the milliseconds of a step that isn't watched."""
    config = config_of(model)
    steps = ((50_000 if config.data == "cifar10" else 60_000) - config.held_out) // config.batch_size
    epochs = train_quietly(model, precision=precision, epochs=4)[1:]
    with Stopwatch() as stopwatch:
        train_quietly(model, precision=precision, epochs=1)
    table = [(name, stopwatch.calls[name] / steps, seconds / steps * 1e3) for name, seconds in stopwatch.seconds.most_common()]
    return table, statistics.mean(float(epoch["seconds"]) for epoch in epochs) / steps * 1e3


def profile(model: str, precision: str) -> None:
    """Prints where a step's time goes, as Markdown."""
    top = in_fresh_process(peak, model, precision)
    table, step = in_fresh_process(operations, model, precision)
    needed = flops_per_image(model) * config_of(model).batch_size / top * 1e3
    print(f"{model}: a step takes {step:.1f} ms; its matrix products at the peak of {top / 1e9:.0f} GFLOP/s would take {needed:.1f} ms\n")
    print("| operation | calls a step | ms a step |\n|---|---|---|")
    slowest, others = table[:16], table[16:]
    others = (f"{len(others)} others", sum(calls for _, calls, _ in others), sum(ms for _, _, ms in others))
    for name, calls, ms in [*slowest, others]:
        print(f"| {name} | {calls:.1f} | {ms:.2f} |")
    print(f"| between them: Python and autograd | | {step - sum(ms for _, _, ms in table):.2f} |")


def spread(values: list[float], form: str) -> str:
    """The median, and the range in brackets."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def main(benchmark: Benchmark) -> None:
    """Prints the table as Markdown."""
    for source in ("mnist", "cifar10"):
        load_known(source, train=True)  # fetched before anything is timed
    precision, reason = pick_precision("auto", torch.device("cpu"))
    if benchmark.profile:
        profile(benchmark.profile, precision)
        return
    threads, version = torch.get_num_threads(), torch.__version__
    print(f"{threads} threads, torch {version}, ours in {precision} ({reason}), {benchmark.rounds} rounds: median (range)\n")
    titles = ["plain, images/s", "ours, images/s", "ratio", "ours in fp32", "share of peak", "peak, GFLOP/s", "memory, GB", "start, s"]
    print("| model | batch |", " | ".join(titles), "|")
    print("|---|---|" + "---|" * len(titles))
    for model in benchmark.models:
        rounds = []
        for _ in range(benchmark.rounds):
            top, slow = in_fresh_process(peak, model, precision), in_fresh_process(plain, model)
            (fast, memory), (fp32, _) = in_fresh_process(ours, model, precision), in_fresh_process(ours, model, "fp32")
            rounds.append((slow, fast, fast / slow, fp32, fast * flops_per_image(model) / top, top / 1e9, memory, first_step(model)))
        forms = (".0f", ".0f", ".1f", ".0f", ".0%", ".0f", ".2f", ".1f")
        columns = [spread(list(values), form) for values, form in zip(zip(*rounds, strict=True), forms, strict=True)]
        print("|", " | ".join([model, str(config_of(model).batch_size), *columns]), "|", flush=True)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Benchmark)))
