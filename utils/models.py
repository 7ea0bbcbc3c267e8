"""A generator as one file that does nothing but be read: safetensors, whose header says which experiment and Config made it."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from utils.files import replacing
from utils.shell import UserError

LARGEST_FILE = 2**29  # bytes; no generator here comes near it, and a header may claim anything
LARGE = 10_000  # numbers in a matrix or a kernel from which halving its size pays
HUGE = 4_000_000  # from which a quarter of it is enough to have
BLOCK = 500  # rows of a huge one
ROWS = "/scale"  # ends the name of what a huge matrix's rows are to be multiplied by
FORMAT = "gan 1"  # what a header's "format" must say; the number grows when older readers would go wrong


def save_generator(path: str | Path, generator: nn.Module, experiment: str, config: Any, **facts: float) -> None:
    """Writes a generator's weights with a header of all it takes to build it again.

    Large matrices and kernels are stored as 16-bit floats, which halves the file; all else stays as it is. In 10,000 images of each of
    three trained generators that moved under 1% of the pixels, none by more than one level of 255. Huge matrices are stored as 8-bit
    integers, each row in units of a 127th of its largest number.
    facts: numbers to note in the header, such as the epoch and the losses.
    """
    header = {"format": FORMAT, "experiment": experiment, "config": json.dumps(dataclasses.asdict(config))}
    header |= {key: str(value) for key, value in facts.items()}
    weights = {}
    for name, value in generator.state_dict().items():
        weights[name] = value.cpu().contiguous()
        if value.ndim == 2 and value.numel() > HUGE:
            least, largest = weights[name].aminmax(dim=1, keepdim=True)
            weights[name + ROWS] = torch.maximum(-least, largest).clamp_min(1e-30) / 127
            small = torch.empty(value.shape, dtype=torch.int8)
            by_rows = zip(*(each.split(BLOCK) for each in (small, weights[name], weights[name + ROWS])), strict=True)
            for into, rows, units in by_rows:  # all at once takes 0.5 GB
                into.copy_((rows / units).round_())
            weights[name] = small
        elif value.is_floating_point() and value.ndim > 1 and value.numel() > LARGE:
            weights[name] = weights[name].half()
    with replacing(path) as part:
        part.write_bytes(save(weights, header))


def read_generator(path: str | Path) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """The experiment's name, its Config as a dict, and the weights (float32, on the CPU) of a file of save_generator's.

    Raises UserError when the file is missing, truncated, too large, no safetensors, or not of this project or version.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"no file {path}: expected the weights of a trained generator, such as models/gan_mnist_leaky.safetensors")
    if os.path.getsize(path) > LARGEST_FILE:
        raise UserError(f"{path} has {os.path.getsize(path):,} bytes, more than any generator of this project: give another file")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if any(file.get_slice(name).get_dtype() == "C64" for name in file.keys()):  # noqa: SIM118 (not a dict)
                raise ValueError("complex numbers")
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        for name in [name for name in weights if name.endswith(ROWS)]:
            rows, matrix = weights.pop(name), weights[name.removesuffix(ROWS)]
            if rows.shape != (len(matrix), 1):
                raise ValueError(f"{name} of the shape {tuple(rows.shape)}")
            matrix *= rows
        config = json.loads(header.get("config", "{}"))
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:  # (a file may hold anything)
        raise UserError(f"{path} is no whole file of weights ({error}): train it again, or fetch it again") from error
    found = header.get("format", "none")
    if found != FORMAT:
        raise UserError(f"{path} has the format '{found}', expected '{FORMAT}': use the version of this project that made it")
    if not isinstance(config, dict):
        raise UserError(f"the header of {path} holds no Config: train the generator again")
    return header.get("experiment", ""), config, weights


def read_facts(path: str | Path) -> dict[str, str]:
    """What else save_generator noted in the header of a file that read_generator takes."""
    with safe_open(path, "pt") as file:
        return {key: value for key, value in file.metadata().items() if key not in ("format", "experiment", "config")}


def read_config(kind: type, constants: dict[str, Any], path: str | Path) -> Any:
    """The dataclass `kind` with these constants, as a header has them; UserError for names and types that aren't its own."""
    types = get_type_hints(kind)
    for name, value in constants.items():
        wanted = types.get(name)
        fits = wanted is not None and (isinstance(value, wanted) or (type(value) is int and isinstance(1.0, wanted)))
        a_number = isinstance(value, bool) and bool not in (wanted, *get_args(wanted))  # which Python takes a bool for
        if not fits or a_number or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"the Config in {path} has {name} = {str(value)[:50]!r}, which its experiment doesn't take: give another file")
    return kind(**constants)


def fill_generator(generator: nn.Module, weights: dict[str, torch.Tensor], path: str | Path) -> nn.Module:
    """Puts weights into a generator built, on the device meta, from their own header; ready to sample. UserError where they don't fit.

    On meta a network has shapes and no memory: however large a Config asks it to be, nothing is allocated but what the file holds.
    """
    try:
        generator.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the weights in {path} don't fit the Config in its header ({reason}): train the generator again") from error
    return generator.eval()
