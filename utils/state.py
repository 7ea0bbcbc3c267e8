"""What a checkpoint holds: the form that a file's content must have before a run believes it, and the state of chance."""

import copy
import math
import random
from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch
from typeguard import CollectionCheckStrategy, check_type


class Winner(TypedDict):
    """The best generator so far."""

    value: float
    facts: dict[str, float]
    weights: dict[str, torch.Tensor]


class Epoch(TypedDict):
    """One that isn't over: its steps so far, their seconds, and the sums of the numbers logged together, each over so many steps."""

    done: int
    seconds: float
    sums: dict[tuple[str, ...], tuple[torch.Tensor, int]]


class State(TypedDict):
    """All that decides the future of a run."""

    config: dict[str, Any]
    images: tuple[int, int] | None  # their number and checksum
    rows: list[dict[str, float]]  # of metrics.csv
    frames: dict[str, torch.Tensor]  # the bytes of its pictures, as tensors because these are read without running anything
    winner: Winner | None
    parts: dict[str, dict[str, Any]]  # networks and optimizers
    scaler: dict[str, Any]
    iteration: int
    epoch: Epoch
    order: torch.Tensor  # the state of the generator that shuffles, before it does so for this epoch
    random: dict[str, Any]


def tensors(state: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Those anywhere in a state; in a container that is there many times, once."""
    seen = set() if seen is None else seen
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple) and id(state) not in seen:
        seen.add(id(state))
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part, seen)


def check(state: State) -> None:
    """ValueError, TypeError or typeguard's TypeCheckError unless a file holds what a run goes on from; its networks aren't looked at."""
    check_type(state, State, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    rows, winner, epoch = state["rows"], state["winner"], state["epoch"]
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError("in it are other metrics than a run's")
    facts = winner["facts"] | {"value": winner["value"]} if winner else {}
    numbers = [epoch["seconds"], *facts.values(), *(number for row in rows for number in row.values())]
    counts = [epoch["done"], state["iteration"], *(count - 1 for _, count in epoch["sums"].values())]
    if not all(math.isfinite(number) for number in numbers + counts) or any(isinstance(number, bool) for number in numbers + counts):
        raise ValueError("in it is a number that isn't finite")
    if not all(0 <= count < 2**63 for count in counts):
        raise ValueError("in it is a count that isn't possible")
    if any(total.shape != (len(names),) for names, (total, _) in epoch["sums"].items()):
        raise ValueError("in it are sums of other numbers")
    if winner is not None and "epoch" not in winner["facts"]:
        raise ValueError("in it the best generator is of no epoch")


def fill(part: Any, saved: dict[str, Any]) -> None:
    """part.load_state_dict; for an optimizer without rates and the like, which are the Config's, and with the shapes compared."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(saved)
        return
    trial = copy.deepcopy(part)  # takes a step, to see what a state has to look like: the next real one would trust it blindly
    for weight in _weights(trial):
        weight.grad = torch.zeros_like(weight)
    trial.step()
    part.load_state_dict({"state": saved["state"], "param_groups": part.state_dict()["param_groups"]})
    forms = {weight: _form(trial.state[tried]) for weight, tried in zip(_weights(part), _weights(trial), strict=True)}
    if any(_form(values) != forms.get(weight) for weight, values in part.state.items()):
        raise ValueError("in it an optimizer has another state")


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All that it moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _form(values: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of an optimizer's state for a weight, all but the numbers in it."""
    return {
        name: (value.dtype, value.shape, [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1])
        for name, value in values.items()
    }


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Of a network's weights, by their names."""
    return {name: weight.shape for name, weight in weights.items()}


def random_states(device: torch.device) -> dict[str, Any]:
    """Of every generator of random numbers that a training may use."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    states = {"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """What random_states found."""
    torch.set_rng_state(states["torch"])
    numpy = states["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    random.setstate(states["python"])
    if "device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
