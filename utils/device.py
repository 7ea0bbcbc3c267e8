"""What a machine can do, and how to get it: device, precision, memory, and a dropout that a CPU doesn't choke on."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch
from torch import nn

from utils.shell import UserError


def pick_device(wanted: str) -> torch.device:
    """The device of that name, or for "auto" the best there is: CUDA, then Apple's MPS, then the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except RuntimeError:
        raise UserError(f"no device named '{wanted}': give auto, cpu, cuda, cuda:1 (and so on) or mps") from None
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # torch.cuda.set_device takes none without a number
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= cards:
            raise UserError(f"there is no device {wanted}, this machine has {cards} CUDA devices that work: give --device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no device mps, this machine isn't an Apple one that has it: give --device auto")
    return device


def pick_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision of matrix products, "fp32", "bf16" or "fp16", and why.

    For "auto": bf16 wherever the device multiplies it natively; elsewhere fp16 on a GPU, and fp32 on a CPU, which would have to
    emulate shorter numbers and get slower.
    """
    if wanted in ("fp32", "bf16", "fp16"):
        return wanted, "as asked"
    if wanted != "auto":
        raise UserError(f"no precision named '{wanted}': give --precision auto, fp32, bf16 or fp16")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU has it") if native else ("fp16", "this GPU has no bf16")
    if device.type == "mps":
        return "bf16", "MPS has it"
    units = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    return ("bf16", f"this CPU has {units[0]}") if units else ("fp32", "this CPU has no bf16 units")


def keep_freed_memory() -> None:
    """Has Linux and glibc keep freed memory for the next step, in large pages; to be called before the first tensor is made.

    By default glibc hands large blocks back to the system, and a step that asks for the same tensors again spends up to 40% of
    its time on page faults; and PyTorch asks for large pages, worth another 10%, only where this variable says so.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = of_glibc("mallopt")
    trim_threshold, mmap_threshold = -1, -3
    if mallopt and mallopt(mmap_threshold, 32 << 20):  # bytes; older versions refuse more, and setting the other alone would harm
        mallopt(trim_threshold, 1 << 30)


def give_back_memory() -> None:
    """Has Linux and glibc hand back to the system what is free; to be called where that is much, and a step's time is little.

    What keep_freed_memory keeps lies between blocks in use, and a block that fits into no gap is new memory: gaps add up.
    """
    trim = of_glibc("malloc_trim")
    if trim:
        trim(0)


def of_glibc(function: str) -> Callable[..., int] | None:
    """This function of the C library; None where it isn't glibc's, which alone has those for its memory."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def widen(x: torch.Tensor) -> torch.Tensor:
    """In float32 where it is shorter.

    For what follows a network's last layer: a sigmoid in bf16 is 1 from 0.998 on, and its gradient 0.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Dropout(nn.Dropout):
    """nn.Dropout (each value is zeroed with probability `p`, the others are multiplied by 1 / (1 - p)), fast on a CPU too.

    PyTorch draws a CPU's mask one Bernoulli number after the other, a fifth of a small GAN's step. Here 64 random bits decide
    on four values, so that `p` is rounded to a multiple of 1 / 65536.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(x)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        mask = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in [-32768, 32767]
        mask.ge_(min(round(self.p * 65536) - 32768, 32767))  # in place stays 16 bits wide, which is faster than a bool
        return x * mask.to(x.dtype).mul_(1 / (1 - self.p))
