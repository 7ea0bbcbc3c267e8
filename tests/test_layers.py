"""The layers of utils/layers.py against PyTorch's own in float64."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.layers import Conv2d, ConvTranspose2d, Flatten, HugeLinear, Unflatten, WideConv2d

LAYERS = [  # ours, PyTorch's, what both are made with
    (Conv2d, nn.Conv2d, (6, 8, 4, 2, 1)),
    (Conv2d, nn.Conv2d, (3, 8, 2, 2)),
    (ConvTranspose2d, nn.ConvTranspose2d, (6, 8, 4, 2, 1)),
    (ConvTranspose2d, nn.ConvTranspose2d, (6, 3, 5, 3)),
]
SHORT = 2**-8  # the relative error of a bf16 number; sums of a few hundred such errors of either sign stay within a few of these


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pair(ours, theirs, shape):
    """A layer of ours and PyTorch's in float64, with the same weights, which bf16 holds exactly."""
    layer, reference = ours(*shape), theirs(*shape).double()
    with torch.no_grad():
        for a, b in zip(layer.parameters(), reference.parameters(), strict=True):
            a.copy_(a.bfloat16())
            b.copy_(a)
    return layer, reference


def assert_close(found, expected):
    assert (found.double() - expected).norm() < 2 * SHORT * expected.norm()


def images(channels, side=8):
    return torch.randn(5, channels, side, side).bfloat16().float().requires_grad_()


@pytest.mark.parametrize("side", [8, 12])
@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_the_output_and_all_gradients_are_pytorchs(ours, theirs, shape, side):
    assert_as_pytorchs(*pair(ours, theirs, shape), images(shape[0], side))


@pytest.mark.parametrize("channels", [4, 8, 12, 16, 20, 32])
@pytest.mark.parametrize("kernel", [(5, 5), (8, 1), (8, 8), (1, 8), (12, 12)])
def test_wide_windows_are_pytorchs_however_many_channels_they_have(channels, kernel):
    assert_as_pytorchs(*pair(WideConv2d, nn.Conv2d, (channels, 6, kernel)), images(channels, 16))


@pytest.mark.parametrize("bias", [True, False])
def test_the_huge_ones_too_where_the_last_rows_are_fewer(bias):
    x = torch.randn(7, 40).bfloat16().float().requires_grad_()
    assert_as_pytorchs(*pair(HugeLinear, nn.Linear, (40, 1100, bias)), x)


def test_the_huge_ones_gradients_add_up_over_passes_and_start_anew_after_a_step():
    layer, reference = pair(HugeLinear, nn.Linear, (40, 1100))
    x = torch.randn(4, 7, 40).bfloat16().float()

    def losses(network, *passes):
        with torch.autocast("cpu", torch.bfloat16, enabled=network is layer):
            return sum(network(each.to(network.weight.dtype)).square().sum() for each in passes)

    for _ in range(2):
        for network in (layer, reference):
            losses(network, x[0], x[1]).backward()
            losses(network, x[2]).backward()
        assert_close(layer.weight.grad, reference.weight.grad)
        for network in (layer, reference):
            network.zero_grad()
    loss = losses(layer, x[3])
    (first,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, layer.weight)
    assert torch.equal(2 * first, second)


def test_flattening_keeps_the_layout_of_pixels_both_ways():
    x = images(6).contiguous(memory_format=torch.channels_last)
    flat = Flatten()(x * 1)  # whose gradient comes out in the layout that it gets
    assert torch.equal(flat, nn.Flatten()(x))
    pull = torch.randn_like(flat)
    (found,) = torch.autograd.grad(flat, x, pull)
    assert torch.equal(found, pull.view(5, 6, 8, 8))
    again = Unflatten(1, (6, 8, 8))(flat)
    assert torch.equal(again, x)
    for image in (found, again):
        assert image.is_contiguous(memory_format=torch.channels_last)


def assert_as_pytorchs(layer, reference, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    exact = x.detach().double().requires_grad_()
    expected = reference(exact)
    assert y.dtype == torch.bfloat16
    assert_close(y, expected)
    pull = torch.randn_like(expected).bfloat16()
    found = torch.autograd.grad(y, [x, *layer.parameters()], pull)
    for a, b in zip(found, torch.autograd.grad(expected, [exact, *reference.parameters()], pull.double()), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_a_penalty_on_the_gradient_moves_the_weights_as_with_pytorchs(ours, theirs, shape):
    """The loss is |dy/dx|^2 of a y that isn't linear in x."""
    found, start = [], images(shape[0]).detach()
    for layer in pair(ours, theirs, shape):
        x = start.to(layer.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer.weight.dtype == torch.float32):
            y = layer(x).square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), layer.weight)[0])
    assert (found[0].double() - found[1]).norm() < 4 * SHORT * found[1].norm()  # twice as many roundings on the way


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_the_weights_gradient_can_be_differentiated_again_after_other_passes(ours, theirs, shape):
    found, starts = [], [images(shape[0]).detach() for _ in range(2)]
    for layer in pair(ours, theirs, shape):
        passes = [x.to(layer.weight.dtype).requires_grad_() for x in starts]
        with torch.autocast("cpu", torch.bfloat16, enabled=layer.weight.dtype == torch.float32):
            y = sum(layer(x).square().sum() for x in passes)
        (gradient,) = torch.autograd.grad(y, layer.weight, create_graph=True)
        found.append(torch.cat(torch.autograd.grad(gradient.square().sum(), passes)))
    assert (found[0].double() - found[1]).norm() < 4 * SHORT * found[1].norm()  # twice as many roundings on the way


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_a_backward_pass_works_out_only_what_it_is_after(ours, theirs, shape):
    layer, _ = pair(ours, theirs, shape)
    x = images(shape[0])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)

    def gradients(*inputs):
        with FlopCounterMode(display=False) as counter:
            found = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
        return found, counter.get_total_flops()

    (of_x, of_weight, of_bias), both = gradients(x, layer.weight, layer.bias)
    for tensor, expected in ((x, of_x), (layer.weight, of_weight)):
        (found,), operations = gradients(tensor)
        assert torch.equal(found, expected)
        assert operations == both / 2 > 0
    (found,), operations = gradients(layer.bias)
    assert torch.equal(found, of_bias)
    assert operations == 0
    y.sum().backward(inputs=[x])
    assert torch.equal(x.grad, of_x)
    assert layer.weight.grad is None


def test_layers_of_several_sizes_share_their_memory():
    def chain(kind):
        return lambda: nn.Sequential(kind(3, 8, 4, 2, 1), kind(8, 4, 4, 2, 1), kind(4, 2, 4, 2, 1))

    assert_as_pytorchs(*pair(chain(Conv2d), chain(nn.Conv2d), ()), images(3, 16))


def test_sizes_that_leave_a_rest_are_left_to_pytorch():
    layer, reference = pair(Conv2d, nn.Conv2d, (3, 4, 4, 2, 1))
    x = torch.randn(2, 3, 9, 8).bfloat16().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(layer(x).sum(), x)
    exact = x.detach().double().requires_grad_()
    assert_close(found, torch.autograd.grad(reference(exact).sum(), exact)[0])


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_in_float32_they_are_pytorchs(ours, theirs, shape):
    layer, reference = pair(ours, theirs, shape)
    x = images(shape[0])
    assert torch.equal(layer(x), reference.float()(x))
