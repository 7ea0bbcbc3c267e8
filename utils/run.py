"""All of a training run that isn't the game: device, precision, seeds, folders, progress bar, logs, pictures, checkpoints."""

import csv
import dataclasses
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import data
from utils.device import keep_freed_memory, pick_device, pick_precision
from utils.files import replacing
from utils.images import captioned, grid, save_curves, save_gif, save_png, to_uint8
from utils.known import KNOWN
from utils.models import save_generator
from utils.shell import UserError, require_positive, require_seed, require_writable

SECONDS_BETWEEN_READINGS = 0.5  # of the numbers in the progress bar: each reading waits for the device
GIF_FRAMES = 50
UNITS = {"images": "img", "samples": "x"}  # what a batch is made of, in metrics.csv and, shorter, in the progress bar
# Constants that a resumed run may have otherwise.
FREE_TO_CHANGE = {"epochs", "resume", "name", "root", "device", "keep_every", "picture_every"}


class Run:
    """One training run, named `config.name` (default: the experiment and its variant). Below the folder `config.root` it leaves

        outputs/<name>/             config.json, metrics.csv, curves.png, real.png, epoch_0001.png and so on, tensorboard/,
                                    and checkpoint.pt, from which `config.resume` goes on
        gif/<name>.gif              the epochs' pictures
        models/<name>.safetensors   the generator; models/<name>/ has those of every `config.keep_every`-th epoch

    config: a dataclass with at least the fields name, root, seed, device, epochs, batch_size and resume; without the field precision
    it is fp32, without keep_every 0.
    shown: which of the logged numbers the progress bar shows, and how ("loss {:.2f}"); it has to fit into 80 columns.
    Raises UserError for constants that make no sense, a device that isn't there, a root that can't be written to.
    """

    def __init__(self, config: Any, experiment: str, variant: str, shown: dict[str, str]) -> None:
        require_positive(epochs=config.epochs, batch_size=config.batch_size)
        require_seed(config.seed)
        self.keep_every = getattr(config, "keep_every", 0)
        if self.keep_every < 0:
            raise UserError(f"keep_every is {self.keep_every}, expected 0 (none) or a number of epochs: give --keep-every another value")
        self.config, self.experiment, self.shown = config, experiment, shown
        self.name = config.name or "_".join(filter(None, [experiment, variant]))
        if Path(self.name).name != self.name or self.name == "..":
            raise UserError(f"the name '{self.name}' has a folder in it, expected a plain name: give the folder with --root")
        root = Path(config.root)
        self.outputs = root / "outputs" / self.name
        self.gif = root / "gif" / f"{self.name}.gif"
        self.weights = root / "models" / f"{self.name}.safetensors"
        self.kept = root / "models" / self.name
        self.checkpoint = self.outputs / "checkpoint.pt"
        require_writable(self.outputs, self.gif.parent, self.kept)

        keep_freed_memory()
        self.device = pick_device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of several cards, the one that is asked about its precision too
        self.precision, self.reason = pick_precision(getattr(config, "precision", "fp32"), self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        torch.manual_seed(config.seed)  # weights, noise, dropout
        self.order = torch.Generator().manual_seed(config.seed)  # the data's

        self.real: Image.Image | None = None  # real.png: load() makes it of images, other experiments set it
        self.parts: dict[str, Any] = {}
        self.rows: list[dict[str, float]] = []
        self.first_epoch, self.stopping, self.whole = 1, False, False
        self.iteration = 0  # of the whole run, counted from 0
        self.winner: dict[str, Any] | None = None  # what best() found
        self.bar: tqdm | None = None

    def load(self, source: str, size: int, channels: int, held_out: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images, and those held out of a known set, its last `held_out`; both uint8 N x C x H x W on the device."""
        if held_out < 0:
            raise UserError(f"held_out is {held_out}, expected 0 or a number of images: give --held-out another value")
        images = data.load(source, size, channels).images
        trained = len(images) - held_out if source in KNOWN else len(images)
        if trained <= 0:
            raise UserError(f"held_out is {held_out}, but {source} has {len(images)} images: give a smaller --held-out")
        images, rest = images[:trained].to(self.device), images[trained:].to(self.device)
        if len(images) < self.config.batch_size:
            batch = self.config.batch_size
            raise UserError(f"{source} has {len(images)} images, fewer than a batch of {batch}: give a smaller --batch-size or more images")
        self.real = grid(images[:100].cpu())
        return images, rest

    def place(self, *modules: nn.Module) -> list[nn.Module]:
        """The modules on the run's device."""
        return [module.to(self.device) for module in modules]

    def track(self, **parts: Any) -> None:
        """Names what a checkpoint holds beside the run itself: anything with a state_dict, the generator as `generator`.

        With `config.resume`, they are filled from the checkpoint.
        """
        self.parts = parts
        if self.config.resume:
            self._resume()

    def autocast(self) -> torch.autocast:
        """The context for forward passes, in the run's precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def backward(self, loss: torch.Tensor, player: nn.Module, retain_graph: bool = False) -> None:
        """The gradient of a player's loss, for that player's weights alone; scaled under fp16, which would lose small ones."""
        self.scaler.scale(loss).backward(inputs=list(player.parameters()), retain_graph=retain_graph)

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Moves the weights along the gradients found since the last step, and forgets these."""
        for optimizer in optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs to go, from 1, or from where a resumed run stopped; ends early on Ctrl-C."""
        self._start()
        for self.epoch in range(self.first_epoch, self.config.epochs + 1):
            self.sums, self.whole = {}, False
            yield self.epoch
            if self.whole:
                self._end_epoch()
            if self.stopping:
                break

    def batches(self, images: torch.Tensor, low: float = 0.0, high: float = 1.0) -> Iterator[torch.Tensor]:
        """One epoch of shuffled batches, float32 in [low, high] on the device."""
        size = self.config.batch_size
        return self.steps(data.batches(images, size, self.order, low, high), len(images) // size)

    def steps(self, batches: Iterable[torch.Tensor], count: int, unit: str = "images") -> Iterator[torch.Tensor]:
        """One epoch of `count` batches, each of `config.batch_size`, from anywhere; unit: what they are of, a key of UNITS."""
        size, self.count, self.unit = self.config.batch_size, count, unit
        if self.bar is None:
            epoch = count * size
            print(f"{epoch:,} {unit} an epoch, on {self.device} in {self.precision} ({self.reason}); pictures in {self.outputs}/")
            self.bar = tqdm(
                total=self.config.epochs * epoch,
                initial=(self.epoch - 1) * epoch,
                unit=f" {UNITS[unit]}",
                unit_scale=True,
                dynamic_ncols=True,
                bar_format="{desc}{bar} {rate_fmt} {remaining}",  # {bar} takes what the others leave of the line
            )
        begun = self.read = time.perf_counter()
        for self.iteration, batch in enumerate(batches, (self.epoch - 1) * count):
            yield batch
            self.bar.update(size)
            if self.stopping:
                return
        self._read()
        self.seconds = time.perf_counter() - begun
        self.whole = True

    def log(self, **values: torch.Tensor | float) -> None:
        """Adds numbers (scalars) to the epoch's means: those of each step, or once, after the steps, those of the epoch.

        Tensors stay on the device: nothing waits for them here.
        """
        total, count = self.sums.get(tuple(values), (0.0, 0))
        step = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in values.values()])
        self.sums[tuple(values)] = total + step, count + 1
        if time.perf_counter() - self.read > SECONDS_BETWEEN_READINGS:
            self._read()

    @torch.no_grad()
    def picture(self, generator: nn.Module, z: torch.Tensor) -> None:
        """Adds what the generator makes of `z` after this epoch, as a grid; `generator.pixels` is the range of its output."""
        self.frame(grid(to_uint8(generator.eval()(z), *generator.pixels)))
        generator.train()

    def frame(self, picture: Image.Image, step: int | None = None) -> None:
        """Adds any picture of the state after this epoch (not of one cut short), or after a `step` within it."""
        if step is not None:
            save_png(picture, self.outputs / f"epoch_{self.epoch - 1:04d}_{step:04d}.png")
        elif self.whole:
            save_png(picture, self.outputs / f"epoch_{self.epoch:04d}.png")
            self._to_tensorboard("fake", picture, self.epoch)

    def due(self, every: int) -> bool:
        """Whether this is an `every`-th epoch (0: none is) or the last one, and not cut short."""
        return every > 0 and self.whole and (self.epoch % every == 0 or self.epoch == self.config.epochs)

    def best(self, generator: nn.Module, **score: float) -> None:
        """Logs a number of this epoch, higher is better; the run's result is the generator for which it is highest."""
        self.log(**score)
        (value,) = score.values()
        if self.winner is None or value > self.winner["value"]:
            weights = {name: weight.detach().clone() for name, weight in generator.state_dict().items()}
            self.winner = {"value": value, "facts": {"epoch": self.epoch, **score}, "weights": weights}

    def finish(
        self,
        generator: nn.Module,
        curves: dict[str, dict[str, str]],
        theory: dict[str, tuple[str, float]],
        reference: dict[str, tuple[str, float]] | None = None,
        captions: bool = True,
    ) -> None:
        """Writes the result: the generator, or the best one if best() was asked, the GIF, the curves. After Ctrl-C the process ends here,
        with status 130.

        curves: as save_curves in utils/images.py takes them; theory, reference: what to hold a column against, its name and value, at
        the optimum and for the data; captions: whether the GIF's frames need the epoch above them.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # saving takes a moment, and nothing would make it good
        self.bar.close()
        self.board.close()
        facts = self.rows[-1] if self.rows and self.whole else {}  # an epoch cut short has no means
        if self.winner is not None:
            generator.load_state_dict(self.winner["weights"])
            facts = self.winner["facts"]
            print("the result is the best generator:", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in facts.items()))
        save_generator(self.weights, generator, self.experiment, self.config, iteration=self.iteration + 1, **facts)
        saved = [self.weights]
        if self.rows:
            marks = {column: (f"in theory, at the optimum: {name}", value) for column, (name, value) in theory.items()}
            save_curves(self.outputs / "metrics.csv", curves, marks | (reference or {}), self.outputs / "curves.png")
            self._save_gif(captions)
            saved += [self.gif, self.outputs] if self.gif.exists() else [self.outputs]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopped, saved:" if self.stopping else "saved:", *saved)
        if self.stopping:
            sys.exit(130)

    def _start(self) -> None:
        """Makes the folders; an earlier run's of this name are emptied, unless this one resumes it. Its GIF and its weights
        stay until this run has its own."""
        with replacing(self.outputs / "config.json") as part:  # the first thing written: here an unwritable place shows
            part.write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
        if not self.config.resume:
            shutil.rmtree(self.outputs / "tensorboard", ignore_errors=True)
            written = [self.outputs / "metrics.csv", self.outputs / "curves.png", self.checkpoint]
            for old in [*written, *self.outputs.glob("epoch_*.png"), *self.kept.glob("epoch_*.safetensors")]:
                old.unlink(missing_ok=True)
        self.board = SummaryWriter(self.outputs / "tensorboard")
        save_png(self.real, self.outputs / "real.png")
        self._to_tensorboard("real", self.real, 0)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *_: Any) -> None:
        """The first Ctrl-C ends the run after this step; a second one ends the process at once."""
        self.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _read(self) -> None:
        """Brings the epoch's means so far from the device into the progress bar."""
        self.means = {}
        for names, (total, count) in self.sums.items():
            self.means |= zip(names, (total / count).tolist(), strict=True)
        for name, value in self.means.items():
            if not math.isfinite(value):
                self.bar.close()
                raise UserError(f"{name} is {value} in epoch {self.epoch}: give constants that let the players move less")
        known = (self.rows[-1] if self.rows else {}) | self.means  # what is measured once an epoch stands there until the next time
        numbers = " ".join(form.format(known[name]) for name, form in self.shown.items() if name in known).replace(" 0.", " .")
        self.bar.set_description_str(f"{self.epoch}/{self.config.epochs} {numbers} ", refresh=False)
        self.read = time.perf_counter()

    def _end_epoch(self) -> None:
        self._read()
        rate = round(self.count * self.config.batch_size / self.seconds, 1)
        self.rows.append({"epoch": self.epoch, **self.means, "seconds": round(self.seconds, 3), f"{self.unit}_per_second": rate})
        with replacing(self.outputs / "metrics.csv") as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        for name, value in self.means.items():
            self.board.add_scalar(name, value, self.epoch)
        if self.keep_every and self.epoch % self.keep_every == 0:
            path = self.kept / f"epoch_{self.epoch:04d}.safetensors"
            save_generator(path, self.parts["generator"], self.experiment, self.config, **self.rows[-1])
        self._save_checkpoint()

    def _to_tensorboard(self, tag: str, picture: Image.Image, epoch: int) -> None:
        pixels = np.asarray(picture)
        self.board.add_image(tag, pixels, epoch, dataformats="HWC" if pixels.ndim == 3 else "HW")

    def _save_gif(self, captions: bool) -> None:
        """The pictures as frames: every early one, where most happens, then fewer and fewer. Without pictures there is no GIF."""
        pictures = sorted(self.outputs.glob("epoch_*.png"))
        if not pictures:
            self.gif.unlink(missing_ok=True)  # an earlier run's would pass for this one's
            return
        shown = np.arange(len(pictures)) + 1
        if len(pictures) > GIF_FRAMES:
            shown = np.unique(np.geomspace(1, len(pictures), GIF_FRAMES).round().astype(int))
        frames = [Image.open(pictures[number - 1]) for number in shown]
        if captions:
            epochs = [int(pictures[number - 1].stem.removeprefix("epoch_")) for number in shown]
            frames = [captioned(frame, f"epoch {epoch}") for frame, epoch in zip(frames, epochs, strict=True)]
        save_gif(frames, self.gif, hold=2)

    def _save_checkpoint(self) -> None:
        state = {
            "config": dataclasses.asdict(self.config),
            "rows": self.rows,
            "winner": self.winner,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "scaler": self.scaler.state_dict(),
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
        }
        if self.device.type != "cpu":
            state["random_device"] = torch.get_device_module(self.device).get_rng_state()
        with replacing(self.checkpoint) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        """Takes up the last whole epoch of the run of this name."""
        if not self.checkpoint.exists():
            raise UserError(f"nothing to resume, there is no {self.checkpoint}: leave out --resume, or give the run's --name and --root")
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # what torch raises for a damaged file depends on where the damage is
            raise UserError(f"{self.checkpoint} is damaged, expected a run's checkpoint: start anew, without --resume") from error
        for field, value in dataclasses.asdict(self.config).items():
            if field not in FREE_TO_CHANGE and value != state["config"].get(field):
                raise UserError(f"{field} was {state['config'].get(field)} in the run to resume and is {value} now: give it the old value")
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        if self.scaler.is_enabled() and state["scaler"]:  # a device of another precision has none, or starts its own
            self.scaler.load_state_dict(state["scaler"])
        self.order.set_state(state["order"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if "random_device" in state and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["random_device"].cpu())
        self.rows, self.winner = state["rows"], state.get("winner")
        self.first_epoch = len(self.rows) + 1
        if self.first_epoch > self.config.epochs:
            raise UserError(f"the run to resume has {len(self.rows)} epochs already: give more --epochs")
