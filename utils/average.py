"""The average of a generator's weights over a run."""

import torch
from torch import nn


@torch.no_grad()
def add_to_average(average: nn.Module, generator: nn.Module, number: int, reach: float) -> None:
    """Makes the generator's weights the `number`-th, from 0, in their average: polynomial-decay averaging (Shamir and Zhang 2013).

    With reach r, above 0 and at most 1, an average of t weights counts the k-th of them about (k/t)^(1/r - 1) times as much as the last.
    Batch norm's statistics are left as they are: they depend on the weights, and have to be taken anew (update_bn).
    """
    torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 / (1 + number * reach))
