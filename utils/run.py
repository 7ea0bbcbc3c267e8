"""All of a training run that isn't the game: device, precision, seeds, folders, progress bar, logs, pictures, checkpoints, processes."""

import dataclasses
import itertools
import json
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from utils import data
from utils.checkpoints import Checkpoints
from utils.device import keep_freed_memory, pick_device, pick_precision
from utils.files import remove_unfinished, write_whole
from utils.film import Film
from utils.images import grid, save_curves, save_png, to_uint8
from utils.known import KNOWN
from utils.lock import Lock
from utils.logbook import Logbook, NotFinite
from utils.models import save_generator
from utils.parallel import Team, together
from utils.shell import UserError, printable, require_positive, require_seed, require_writable
from utils.state import State, Winner, check, fill, random_states, set_random_states, shapes, tensors

SECONDS_BETWEEN_CHECKPOINTS = 600  # within an epoch; after each there is one anyway
STEPS_BETWEEN_QUESTIONS = 10  # of several processes, whether one of them was asked to stop
STOPPED_BY = (signal.SIGINT, signal.SIGTERM)
UNITS = {"images": "img", "samples": "x"}  # what a batch is made of, in metrics.csv and, shorter, in the progress bar
# Constants that a resumed run may have otherwise.
FREE_TO_CHANGE = {"epochs", "resume", "name", "root", "device", "keep_every", "picture_every"}
OF_A_MACHINE = {"name", "root", "device", "data"}  # constants that several processes may have otherwise


class Run:
    """One training run, named `config.name` (default: the experiment and its variant). Below the folder `config.root` it leaves

        outputs/<name>/             config.json, metrics.csv, curves.png, real.png, epoch_0001.png and so on, tensorboard/,
                                    and checkpoint.pt and the one before it, from which `config.resume` goes on
        gif/<name>.gif              the epochs' pictures
        models/<name>.safetensors   the generator; models/<name>/ has those of every `config.keep_every`-th epoch

    config: a dataclass with at least the fields name, root, seed, device, epochs, batch_size and resume; without the field precision
    it is fp32, without keep_every 0.
    shown: which of the logged numbers the progress bar shows, and how ("loss {:.2f}"); it has to fit into 80 columns.
    torchrun may start several processes of a run: each takes its share of every batch, and the first of them writes.
    Raises UserError for constants that make no sense, a device that isn't there, a root that can't be written to.
    """

    def __init__(self, config: Any, experiment: str, variant: str, shown: dict[str, str]) -> None:
        require_positive(epochs=config.epochs, batch_size=config.batch_size)
        require_seed(config.seed)
        self.keep_every = getattr(config, "keep_every", 0)
        if self.keep_every < 0:
            raise UserError(f"keep_every is {self.keep_every}, expected 0 (none) or a number of epochs: give --keep-every another value")
        self.config, self.experiment = config, experiment
        self.name = config.name or "_".join(filter(None, [experiment, variant]))
        if Path(self.name).name != self.name or self.name == "..":
            raise UserError(f"the name '{self.name}' has a folder in it, expected a plain name: give the folder with --root")
        root = Path(config.root)
        self.outputs = root / "outputs" / self.name
        self.weights = root / "models" / f"{self.name}.safetensors"
        self.kept = root / "models" / self.name
        self.checkpoints = Checkpoints(self.outputs / "checkpoint.pt")
        self.lock = Lock(self.outputs)
        self.film = Film(self.outputs, root / "gif" / f"{self.name}.gif")
        self.team = Team()
        self.share = self.team.share(config.batch_size)
        self.writes = self.team.rank == 0
        if self.writes:
            require_writable(self.outputs, self.film.gif.parent, self.kept)

        keep_freed_memory()
        self.logbook = Logbook(self.outputs, shown, config.epochs, self.writes)
        self.device = pick_device(self.team.device(config.device))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of several cards, the one that is asked about its precision too
        self.team.join(self.device)
        shared = {field: value for field, value in dataclasses.asdict(config).items() if field not in OF_A_MACHINE}
        self.team.agree("constants", shared)
        self.precision, self.reason = self.team.told(pick_precision(getattr(config, "precision", "fp32"), self.device))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        torch.manual_seed(config.seed)  # weights, noise, dropout
        self.order = torch.Generator().manual_seed(config.seed)  # the data's
        self.order_of_epoch = self.order.get_state()  # before it shuffled them

        self.images: tuple[int, int] | None = None  # the number and the checksum of those that load() found
        self.labels: torch.Tensor | None = None  # of the training images
        self.real: Image.Image | None = None  # real.png: load() makes it of images, other experiments set it
        self.parts: dict[str, Any] = {}
        self.winner: Winner | None = None  # what best() found
        self.iteration = 0  # of the whole run, counted from 0
        self.done, self.seconds = 0, 0.0  # of this epoch, the steps and what they took
        self.whole = False  # whether its last step is done
        self.stopping = 0  # the number of the signal that asks for it

    def load(self, source: str, size: int, channels: int, held_out: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images, and those held out of a known set, its last `held_out`; both uint8 N x C x H x W on the device.

        The former's `labels`, int64 on the device, are known of a known set.
        """
        if held_out < 0:
            raise UserError(f"held_out is {held_out}, expected 0 or a number of images: give --held-out another value")
        with self.team.in_turn():
            found = data.load(source, size, channels)
        images = found.images
        self.images = len(images), zlib.crc32(images.contiguous().numpy())
        self.team.agree("images", self.images)
        trained = len(images) - held_out if source in KNOWN else len(images)
        if trained <= 0:
            raise UserError(f"held_out is {held_out}, but {source} has {len(images)} images: give a smaller --held-out")
        images, rest = images[:trained].to(self.device), images[trained:].to(self.device)
        self.labels = None if found.labels is None else found.labels[:trained].to(self.device)
        if len(images) < self.config.batch_size:
            batch = self.config.batch_size
            raise UserError(f"{source} has {len(images)} images, fewer than a batch of {batch}: give a smaller --batch-size or more images")
        self.real = grid(images[:100].cpu())
        return images, rest

    def place(self, *modules: nn.Module) -> list[nn.Module]:
        """The modules on the run's device; of several processes the same in each, with gradients averaged over them."""
        return [self.team.place(module.to(self.device)) for module in modules]

    def track(self, **parts: Any) -> None:
        """Names what a checkpoint holds beside the run itself: anything with a state_dict, the generator as `generator`.

        With `config.resume`, they are filled from the checkpoint. Raises UserError where there is none, where it was made with other
        constants, and where another process trains under this name.
        """
        self.parts = parts
        if self.writes:
            if self.config.resume and not self.checkpoints.exist():
                path = self.checkpoints.path
                raise UserError(f"nothing to resume, there is no {path}: leave out --resume, or give the run's --name and --root")
            self.lock.take(f"trains {self.name}")
        if self.config.resume:
            self._resume()
        if self.team.rank:  # each process has its own noise
            torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.team.rank, self.iteration]).generate_state(1)[0]))

    def autocast(self) -> torch.autocast:
        """The context for forward passes, in the run's precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def backward(
        self, loss: torch.Tensor | None, player: nn.Module, retain_graph: bool = False,
        also: Sequence[torch.Tensor] = (), onward: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        """The gradient of a player's loss, for that player's weights alone; scaled under fp16, which would lose small ones.

        also: tensors that get theirs in their .grad, as scaled as the loss. onward: tensors, each with a gradient found like that since
        the last step, which goes on from there to the player; the loss may be None beside them.
        """  # fmt: skip
        with together():
            own = [] if loss is None else [(self.scaler.scale(loss), None)]
            tensors, gradients = zip(*own, *onward, strict=True)
            torch.autograd.backward(tensors, gradients, inputs=[*player.parameters(), *also], retain_graph=retain_graph)

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Moves the weights along the gradients found since the last step, and forgets these."""
        for optimizer in optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Over the processes, of a tensor that needs no gradient."""
        return self.team.mean(values.clone())

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs to go, from 1, or from where a resumed run stopped; ends early on Ctrl-C and on SIGTERM."""
        self._start()
        for self.epoch in range(len(self.logbook.rows) + 1, self.config.epochs + 1):
            self.whole = False
            yield self.epoch
            if self.whole:
                self._end_epoch()
            if self._asked_to_stop():
                break

    def batches(self, images: torch.Tensor, low: float = 0.0, high: float = 1.0, beside: torch.Tensor | None = None) -> Iterator[Any]:
        """One epoch of shuffled batches, float32 in [low, high] on the device; with `beside`, pairs of them and their rows of it."""
        size = self.config.batch_size
        self.order_of_epoch = self.order.get_state()
        return self.steps(data.batches(images, size, self.order, low, high, beside), len(images) // size)

    def steps(self, batches: Iterable[Any], count: int, unit: str = "images") -> Iterator[Any]:
        """One epoch of `count` batches, each of `config.batch_size`, from anywhere; unit: what they are of, a key of UNITS.

        A resumed epoch goes on where it was broken off; of several processes, each gets its share of every batch.
        """
        size, self.count, self.unit = self.config.batch_size, count, unit
        if self.logbook.bar is None:
            self._open_bar(count * size, unit)
        begun = saved = time.perf_counter()
        for step, batch in enumerate(itertools.islice(batches, self.done, None), self.done):
            self.iteration = (self.epoch - 1) * count + step
            share = slice(self.team.rank, None, self.team.size)
            yield batch[share] if isinstance(batch, torch.Tensor) else tuple(part[share] for part in batch)
            self.done = step + 1
            self.logbook.bar.update(size)
            if self.team.size > 1 and self.done % STEPS_BETWEEN_QUESTIONS:
                continue
            now = time.perf_counter()
            stop, due = self._asked_to_stop(), self.team.largest(int(now - saved > SECONDS_BETWEEN_CHECKPOINTS), self.device)
            if stop or due:
                self.seconds += now - begun
                begun = saved = now
                self._average_sums()
                self._save_checkpoint()
            if stop:
                return
        self._average_sums()
        self.seconds += time.perf_counter() - begun
        self.whole = True

    def _average_sums(self) -> None:
        """Makes the epoch's numbers those of all processes."""
        self.logbook.sums = {names: (self.team.mean(total), number) for names, (total, number) in self.logbook.sums.items()}

    def log(self, **values: torch.Tensor | float) -> None:
        """Adds numbers (scalars) to the epoch's means: those of each step, or once, after the steps, those of the epoch.

        Tensors stay on the device: nothing waits for them here.
        """
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in values.values()])
        with self._finite():
            self.logbook.add(self.iteration, self.epoch, tuple(values), numbers)

    @torch.no_grad()
    def picture(self, generator: nn.Module, z: torch.Tensor) -> None:
        """Adds what the generator makes of `z` after this epoch, as a grid; `generator.pixels` is the range of its output."""
        if self.writes:
            self.frame(grid(to_uint8(generator.eval()(z), *generator.pixels)))
            generator.train()

    def frame(self, picture: Image.Image, step: int | None = None) -> None:
        """Adds any picture of the state after this epoch (not of one cut short), or after a `step` within it."""
        if not self.writes or not (self.whole or step):
            return
        self.film.add(picture, self.epoch, step)
        if step is None:
            self.logbook.picture("fake", picture, self.epoch)

    def due(self, every: int) -> bool:
        """Whether this is an `every`-th epoch (0: none is) or the last one, and not cut short; of several processes, for the first."""
        return self.writes and every > 0 and self.whole and (self.epoch % every == 0 or self.epoch == self.config.epochs)

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
        beside: tuple[str, ...] = (),
    ) -> None:
        """Writes the result: the generator, or the best one if best() was asked, the GIF, the curves. After Ctrl-C or SIGTERM the
        process ends here, with status 130 or 143.

        curves: as save_curves in utils/images.py takes them; theory, reference: what to hold a column against, its name and value, at
        the optimum and for the data; captions: whether the GIF's frames need the epoch above them; beside: names of tracked
        networks to save as well, in models/<name>/.
        """
        for number in STOPPED_BY:
            signal.signal(number, signal.SIG_IGN)  # saving takes a moment, and nothing would make it good
        self.logbook.close_bar()
        if self.writes:
            self.checkpoints.wait()
            if not self.checkpoints.exist():  # somebody moved the folder away
                self._save_checkpoint()
                self.checkpoints.wait()
            saved = self._save_result(generator, curves, theory, reference or {}, captions, beside)
            print("stopped, saved:" if self.stopping else "saved:", *saved)
            self.lock.release()
        self.team.leave()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.stopping:
            sys.exit(128 + self.stopping)

    def _save_result(
        self,
        generator: nn.Module,
        curves: dict[str, dict[str, str]],
        theory: dict[str, tuple[str, float]],
        reference: dict[str, tuple[str, float]],
        captions: bool,
        beside: tuple[str, ...],
    ) -> list[Path]:
        """What finish() writes; its paths."""
        facts = self.logbook.rows[-1] if self.whole else {}  # an epoch cut short has no means
        if self.winner is not None:
            generator.load_state_dict(self.winner["weights"])
            facts = self.winner["facts"]
            print("the result is the best generator:", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in facts.items()))
        networks = {self.weights: generator} | {self.kept / f"{part}.safetensors": self.parts[part] for part in beside}
        for path, network in networks.items():
            save_generator(path, network, self.experiment, self.config, iteration=self.iteration + 1, **facts)
        if not self.logbook.rows:
            return [*networks]
        marks = {column: (f"in theory, at the optimum: {name}", value) for column, (name, value) in theory.items()}
        self._write_known()
        save_curves(self.logbook.path, curves, marks | reference, self.outputs / "curves.png")
        self.film.save(captions)
        return [*networks, *([self.film.gif] if self.film.frames else []), self.outputs]

    def _start(self) -> None:
        """Makes the folders; an earlier run's of this name are emptied, unless this one resumes it. Its GIF and its weights
        stay until this run has its own."""
        for number in STOPPED_BY:
            signal.signal(number, self._stop)
        if not self.writes:
            return
        if not self.config.resume:
            self.checkpoints.remove()
            for old in [self.outputs / "metrics.csv", self.outputs / "curves.png", *self.kept.glob("epoch_*.safetensors")]:
                old.unlink(missing_ok=True)
        if len(self.logbook.rows) < self.config.epochs:  # what score.py says of the old weights won't be true of the new ones
            for old in [*self.outputs.glob("scores*.json"), self.outputs / "copies.png"]:
                old.unlink(missing_ok=True)
        for path in (self.outputs / "*", self.kept / "*", self.weights, self.film.gif):
            remove_unfinished(path)
        self._write_known()
        self.logbook.write_tensorboard(self.real, self.film.of_epochs())

    def _write_known(self) -> None:
        """The files whose content is known at any time; at a run's end once more, since somebody may have moved the folder away."""
        write_whole(self.outputs / "config.json", (json.dumps(dataclasses.asdict(self.config), indent=2) + "\n").encode())
        save_png(self.real, self.outputs / "real.png")
        self.film.restore()
        if self.logbook.rows:
            self.logbook.write_table()

    def _stop(self, number: int, _: Any) -> None:
        """The first Ctrl-C or SIGTERM ends the run after this step; a second one ends the process at once, unless torchrun started
        it, which passes on to its processes what they have had from the terminal already."""
        self.stopping = number
        if not self.team.launched:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _asked_to_stop(self) -> bool:
        """Whether this process was, or any other of its team, which all have to ask this at once."""
        self.stopping = self.team.largest(self.stopping, self.device)
        return self.stopping > 0

    def _open_bar(self, epoch: int, unit: str) -> None:
        """epoch: how many of the unit it has."""
        if self.writes:
            each = f", shared by {self.team.size} processes" if self.team.size > 1 else ""
            print(f"{epoch:,} {unit} an epoch{each}, on {self.device} in {self.precision} ({self.reason}); pictures in {self.outputs}/")
        done = (self.epoch - 1) * epoch + self.done * self.config.batch_size
        self.logbook.open_bar(done, self.config.epochs * epoch, UNITS[unit])

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Adds to the sentence about a number that isn't what is left of the run."""
        try:
            yield
        except NotFinite as error:
            self.checkpoints.wait()
            kept = f"; {self.checkpoints.path} is from before" if self.checkpoints.exist() else ""
            raise UserError(f"{error}{kept}: give constants that let the players move less") from None

    def _end_epoch(self) -> None:
        """Writes what an epoch leaves."""
        rate = round(self.count * self.config.batch_size / self.seconds, 1)
        with self._finite():
            self.logbook.end_epoch(self.epoch, **{"seconds": round(self.seconds, 3), f"{self.unit}_per_second": rate})
        self.done, self.seconds = 0, 0.0
        if not self.writes:
            return
        if self.keep_every and self.epoch % self.keep_every == 0:
            path = self.kept / f"epoch_{self.epoch:04d}.safetensors"
            save_generator(path, self.parts["generator"], self.experiment, self.config, **self.logbook.rows[-1])
        self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        """All that decides the future."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        with self._finite():
            self.logbook.read(self.epoch)
            floats = (values for values in tensors(parts) if values.is_floating_point())
            if not all(values.sum().isfinite() for values in floats):  # (ten times faster than to ask of each)
                raise NotFinite(f"a weight or its optimizer's state is no longer finite after iteration {self.iteration + 1:,}")
        if not self.writes:
            return
        state: State = {
            "config": dataclasses.asdict(self.config),
            "images": self.images,
            "rows": self.logbook.rows,
            "frames": {name: torch.frombuffer(bytearray(png), dtype=torch.uint8) for name, png in self.film.frames.items()},
            "winner": self.winner,
            "parts": parts,
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "epoch": {"done": self.done, "seconds": self.seconds, "sums": self.logbook.sums},
            "order": self.order.get_state() if self.whole else self.order_of_epoch,
            "random": random_states(self.device),
        }
        self.checkpoints.save(state)

    def _resume(self) -> None:
        """Goes on from the newest whole checkpoint of this name."""
        state, said = self.team.told(self.checkpoints.load() if self.writes else None)
        try:
            self._take(state)
        except UserError:
            raise
        except Exception as error:  # what a stranger's file may lack, and where it shows, has no end
            path = self.checkpoints.path
            raise UserError(f"{path} is no checkpoint of {self.experiment} ({error!r:.100}): start anew, without --resume") from error
        if self.writes:
            steps = f" and {self.done} steps" if self.done else ""
            print(f"{printable(said)}goes on after {len(self.logbook.rows)} epochs{steps} of {self.name}")

    def _take(self, state: State) -> None:
        """What _save_checkpoint has put together; UserError where that was done with other constants or on other images."""
        check(state)
        for field, value in dataclasses.asdict(self.config).items():
            if field not in FREE_TO_CHANGE and value != state["config"].get(field):
                raise UserError(f"{field} was {state['config'].get(field)} in the run to resume and is {value} now: give it the old value")
        if len(state["rows"]) + bool(state["epoch"]["done"]) > self.config.epochs:
            raise UserError(f"the run to resume has {len(state['rows'])} epochs already: give more --epochs")
        if state["images"] != self.images:
            raise UserError("these aren't the images that the run to resume was trained on: give it those, or start anew, without --resume")
        for name, part in self.parts.items():
            fill(part, state["parts"].pop(name))  # so that what a part has taken is free before the next takes room
        winner = state["winner"]
        if winner and shapes(winner["weights"]) != shapes(self.parts["generator"].state_dict()):
            raise ValueError("in it the best generator has another shape")
        if self.scaler.is_enabled() and state["scaler"]:  # a device of another precision has none, or starts its own
            self.scaler.load_state_dict(state["scaler"])
        self.order.set_state(state["order"])
        self.order_of_epoch = state["order"]
        set_random_states(state["random"], self.device)
        self.logbook.rows, self.winner, self.iteration = state["rows"], winner, state["iteration"]
        self.film.take({name: png.numpy().tobytes() for name, png in state["frames"].items()})
        self.done, self.seconds = state["epoch"]["done"], state["epoch"]["seconds"]
        self.logbook.sums = {names: (total.to(self.device), count) for names, (total, count) in state["epoch"]["sums"].items()}
        self.whole = not self.done
