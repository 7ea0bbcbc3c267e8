"""What several processes gain: the bytes that a step sends, step times, and the efficiency to expect from both.

Prints Markdown. Measured here, on two CPU cores: the time of a step of one process on one core, of two that have nothing to do with
each other, of two that train together (gloo, loopback), and of the exchange alone. Computed: the rest; scaling.md has the formulas.

    python benchmarks/scaling.py
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import tyro
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("", "tests"))
from runs import PlainRun

import dcgan_cifar10
import gan_cifar10_conv
import gan_mnist
import gan_normal
import gan_ring
import infogan_mnist
from utils.shell import command_line

MODELS = {"maxout": 100, "batchnorm": 100, "leaky": 256, "infogan": 128}  # gan_mnist's and infogan_mnist, with the batch that is measured
OTHERS = {  # of which only what they send is told
    "gan_normal": (gan_normal, {}),
    "gan_ring": (gan_ring, {}),
    "dcgan modern": (dcgan_cifar10, {}),
    "dcgan paper": (dcgan_cifar10, {"recipe": "paper"}),
    "conv": (gan_cifar10_conv, {}),
}
EPOCHS, IMAGES = 4, 10_000  # measured; the first epoch of a run warms up
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes that DDP sends at once
LINKS = {  # bytes/s that a process can send, seconds from one to the next; what vendors state, not measured
    "NVLink 4, 450 GB/s": (450e9, 5e-6),
    "InfiniBand, 400 Gbit/s": (50e9, 10e-6),
    "Ethernet, 100 Gbit/s": (12.5e9, 30e-6),
    "Ethernet, 10 Gbit/s": (1.25e9, 50e-6),
}
LAUNCH, GPU_FLOPS = 5e-6, 0.4 * 990e12  # seconds that a kernel takes at least; 40% of an H100's bf16 peak


@dataclass
class Table:
    """Measure and compute what several processes gain."""

    models: tuple[str, ...] = tuple(MODELS)
    """Of gan_mnist; or infogan."""


def step_seconds(model: str, batch: int, processes: int) -> float:
    """The time of a step of the real script, which shares `batch` images among so many processes of one thread each; median of epochs."""
    with tempfile.TemporaryDirectory() as root:
        script = ["infogan_mnist.py"] if model == "infogan" else ["gan_mnist.py", "--model", model, "--estimate-every", "0"]
        launch = ["--standalone", f"--nproc_per_node={processes}", *script, "--batch-size", str(batch)]
        constants = ["--held-out", str(60_000 - IMAGES), "--epochs", str(EPOCHS), "--device", "cpu"]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, *constants, "--root", root, "--name", "run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, check=True, capture_output=True)
        with open(Path(root) / "outputs" / "run" / "metrics.csv", newline="") as file:
            rates = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return batch / statistics.median(rates[1:])


def sent_bytes(model: str) -> float:
    """What each of two processes sends in a step, by the system's count of the loopback device's bytes (Linux), meetings included."""

    def count() -> int:
        (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
        return int(line.split()[9])

    before, batch = count(), MODELS[model]
    step_seconds(model, batch, 2)
    return (count() - before) / 2 / (EPOCHS * (IMAGES // batch))


def exchange_seconds(size: int) -> float:
    """The time in which two processes here average so many bytes; median of 20."""
    with tempfile.TemporaryDirectory() as folder:
        found = multiprocessing.get_context("spawn").SimpleQueue()
        multiprocessing.spawn(_exchange, (size, f"{folder}/meeting", found), nprocs=2)
        return found.get()


def _exchange(rank: int, size: int, meeting: str, found: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    values, times = torch.zeros(size // 4), []
    for _ in range(25):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - begun)
    if rank == 0:
        found.put(statistics.median(times[5:]))
    dist.destroy_process_group()


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would launch a kernel for: all that don't just look at a tensor in another way."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


class ShortRun(PlainRun):
    """What a step asks of a run, without its plumbing, in short numbers."""

    autocast = staticmethod(lambda: torch.autocast("cpu", torch.bfloat16))


def gpu_seconds(model: str, batch: int) -> float:
    """What a step takes a GPU at least, by its kernels and by its products, whichever is more. Computed, not measured."""
    players = networks(model)
    optimizers = [torch.optim.SGD(player.parameters(), 0.1, momentum=0.5, fused=True) for player in players]
    steps = {"leaky": gan_mnist.take_turns, "infogan": partial(infogan_mnist.move_at_once, config=infogan_mnist.Config())}
    step = steps.get(model, gan_mnist.move_at_once)
    with Launches() as launches, FlopCounterMode(display=False) as products:
        step(ShortRun(), *players, *optimizers, torch.rand(batch, 1, 28, 28))
    return max(launches.count * LAUNCH, products.get_total_flops() / GPU_FLOPS)


def networks(model: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The players of one of gan_mnist's models, or of another experiment."""
    if model in OTHERS:
        experiment, constants = OTHERS[model]
        config = experiment.Config(**constants)
        sizes = {"base": config.base, "classes": config.classes} if experiment is dcgan_cifar10 else {}
        return experiment.make_generator(config), experiment.Discriminator(**sizes)
    if model == "infogan":
        return infogan_mnist.Generator(), infogan_mnist.Discriminator()
    return gan_mnist.make_generator(gan_mnist.Config(model=model)), gan_mnist.DISCRIMINATORS[model]()


def gradient_bytes(model: str) -> list[int]:
    """Of each player, in float32."""
    with torch.device("meta"):  # `conv` would take 0.3 GB
        return [sum(4 * weight.numel() for weight in player.parameters()) for player in networks(model)]


def ring_seconds(sizes: list[int], processes: int, bandwidth: float, latency: float) -> float:
    """The time of a ring's all-reduce of networks: each process sends 2 (n - 1) / n of the bytes, in 2 (n - 1) rounds for each bucket."""
    rounds, buckets = 2 * (processes - 1), sum(1 + -(-max(0, size - FIRST_BUCKET) // BUCKET) for size in sizes)
    return rounds / processes * sum(sizes) / bandwidth + rounds * latency * buckets


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints one as Markdown."""
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def main(config: Table) -> None:
    """Prints what each experiment sends, what was measured, and what follows."""
    rows = []
    for model in (*config.models, *OTHERS):
        size = sum(gradient_bytes(model))
        sent = [f"{2 * (n - 1) / n * size / 1e6:.3f}" for n in (2, 8, 64)]
        measured = "" if model in OTHERS else f"{sent_bytes(model) / 1e6:.3f}"
        rows.append([model, f"{size // 4:,}", *sent, measured])
    computed = [f"each of {n} sends, MB" for n in (2, 8, 64)]
    table("Computed: what a step sends; of two processes also measured", ["model", "weights", *computed, "each of 2 sent, MB"], rows)

    seconds, rows = {}, []
    for model in config.models:
        exchange = exchange_seconds(sum(gradient_bytes(model)))
        for batch in (MODELS[model] // 2, MODELS[model]):
            seconds[model] = step_seconds(model, batch, 1)
            with ThreadPoolExecutor(2) as both:
                beside = statistics.mean(both.map(lambda _: step_seconds(model, batch, 1), range(2)))  # noqa: B023 (used at once)
            together = step_seconds(model, 2 * batch, 2)
            times = [f"{1000 * time:.1f}" for time in (seconds[model], beside, exchange, beside + exchange, together)]
            rows.append([model, str(batch), *times, f"{seconds[model] / together:.0%}"])
    columns = ["model", "images", "alone", "two beside each other", "exchange", "expected together", "measured together", "efficiency"]
    table("Measured: milliseconds of a step of one process, on one core", columns, rows)

    rows = []
    for model in config.models:
        for kind, step in (("CPU core, measured", seconds[model]), ("GPU, computed", gpu_seconds(model, MODELS[model]))):
            gains = [[f"{step / (step + ring_seconds(gradient_bytes(model), n, *link)):.0%}" for n in (8, 64)] for link in LINKS.values()]
            rows.append([model, str(MODELS[model]), kind, f"{1000 * step:.2f}", *(" / ".join(gain) for gain in gains)])
    columns = ["model", "images", "on a", "step, ms", *LINKS]
    table("Computed: efficiency of 8 / 64 processes, each with so many images", columns, rows)


if __name__ == "__main__":
    command_line(lambda: main(tyro.cli(Table)))
