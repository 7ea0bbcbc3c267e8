"""The average of weights against slow references."""

import math

import pytest
import torch
from torch import nn

from utils.average import add_to_average


@pytest.mark.parametrize(("reach", "power"), [(1, 0), (1 / 2, 1), (1 / 3, 2)])
def test_the_average_approaches_a_power_of_the_step(reach, power):
    average, generator = nn.Linear(1, 1), nn.Linear(1, 1)
    values = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 5, 2000)
    for number, value in enumerate(values):
        generator.weight.data.fill_(value)
        add_to_average(average, generator, number, reach)
    counts = torch.arange(1, 2001, dtype=torch.float64) ** power  # which polynomial decay has in the limit
    assert average.weight.item() == pytest.approx(((counts * values).sum() / counts.sum()).item(), abs=5e-3)


@pytest.mark.parametrize("reach", [1.0, 0.1])
def test_the_average_counts_late_weights_more(reach):
    """Against the sum of all weights, each with its share worked out by itself."""
    torch.manual_seed(0)
    layer, average = nn.Linear(3, 2), nn.Linear(3, 2)
    seen = []
    for number in range(50):
        nn.init.normal_(layer.weight)
        seen.append(layer.weight.detach().double())
        add_to_average(average, layer, number, reach)
    shares = [1 / (1 + number * reach) for number in range(50)]
    expected = sum(share * math.prod(1 - late for late in shares[k + 1 :]) * seen[k] for k, share in enumerate(shares))
    torch.testing.assert_close(average.weight.double(), expected, rtol=1e-5, atol=1e-6)
