"""Several processes that train one model, started by torchrun: what they agree on. One process alone does none of it."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.shell import UserError

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


@contextmanager
def together() -> Iterator[None]:
    """Around all that waits for the other processes: UserError where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"another process of this run has ended or is out of reach ({reason}): start all again, with --resume") from error


class Replica(DistributedDataParallel):
    """A network of which each process has a copy, whose gradients are averaged over the processes; else like the network itself."""

    def __init__(self, network: nn.Module) -> None:
        # Batch norm's buffers are each process's own: rank 0's are those that are saved.
        super().__init__(network, forward_sync_buffers=False)

    def forward(self, *inputs: Any) -> Any:
        with together():
            return super().forward(*inputs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def __deepcopy__(self, memo: dict) -> nn.Module:
        return copy.deepcopy(self.module, memo)  # one that no gradients are meant for

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return self.module.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.module.load_state_dict(*arguments, **options)


class Team:
    """The processes of this run: how many (`size`), and the number of this one, from 0, among all (`rank`; 0 writes the files) and
    among those of its machine (`local_rank`)."""

    def __init__(self) -> None:
        self.rank, self.local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1 and "RANK" not in os.environ:
            raise UserError(f"the environment has WORLD_SIZE {self.size}, but no RANK: start the script by torchrun, or unset it")
        self.launched = dist.is_torchelastic_launched()  # by torchrun

    def device(self, wanted: str) -> str:
        """`wanted`, or of several cards this process's own; UserError where one card is wanted for all processes."""
        if self.size > 1 and ":" in wanted:
            raise UserError(f"device is {wanted}, which {self.size} processes can't share: give --device cuda, and each takes its own")
        if self.size > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return wanted

    def join(self, device: torch.device) -> None:
        """Waits for the others; UserError on a device that has no collectives."""
        if self.size == 1 or dist.is_initialized():
            return
        if device.type not in BACKENDS:
            raise UserError(f"{device.type} can't be shared by several processes: give --device cpu, or start the script without torchrun")
        with together():
            dist.init_process_group(BACKENDS[device.type])

    def place(self, network: nn.Module) -> nn.Module:
        """The network, ready to train; of a team the same in all of its processes."""
        if self.size == 1:
            return network
        with together():
            return Replica(network)

    def share(self, batch_size: int) -> int:
        """Of a batch, what this process takes; UserError where it can't be shared evenly."""
        if batch_size % self.size:
            raise UserError(f"batch_size is {batch_size}, which {self.size} processes can't share evenly: give --batch-size a multiple")
        return batch_size // self.size

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Over the processes."""
        if self.size > 1:
            with together():
                dist.all_reduce(values)
            values /= self.size
        return values

    def largest(self, number: int, device: torch.device) -> int:
        """Of what the processes have."""
        if self.size == 1:
            return number
        numbers = torch.tensor([number], device=device)
        with together():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
            return int(numbers.item())

    def told(self, thing: Any) -> Any:
        """What rank 0 has in its place: tensors, numbers, strings and their containers."""
        if self.size == 1:
            return thing
        things = [thing]
        with together():
            dist.broadcast_object_list(things)
        return things[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What each machine's first process does before its others, so that only one of them fetches what all need."""
        if self.size > 1 and self.local_rank:
            self.wait()
        yield
        if self.size > 1 and not self.local_rank:
            self.wait()

    def wait(self) -> None:
        """Until all are here."""
        with together():
            dist.barrier()

    def agree(self, what: str, thing: Any) -> None:
        """UserError unless this process has the thing that rank 0 has: what trains on other data or constants averages nonsense."""
        if self.told(thing) != thing:
            raise UserError(f"process {self.rank} of {self.size} has other {what} than process 0: start all of them alike")

    def leave(self) -> None:
        """The run is over, or another one starts."""
        if dist.is_initialized():
            dist.destroy_process_group()
