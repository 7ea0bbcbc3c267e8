"""Layers that don't choke a CPU."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

ROWS = 500  # of a huge matrix: with 8000 numbers each 8 MB in short floats
SMALL = 8  # pixels: the side of an image on which a convolution is slower than a product of its windows
_space = torch.empty(0)  # for windows


class Conv2d(nn.Conv2d):
    """nn.Conv2d of N x C x H x W. While gradients are recorded in bf16 on a CPU, at a stride above 1 that leaves no rest, its weights'
    gradient is one matrix product, and so is its result where images are at most 8 x 8.

    PyTorch's own takes up to twice as long over that gradient.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight  # once: where it is normalised, each reading computes it anew
        rest = any((side + 2 * self.padding[0] - self.kernel_size[0]) % self.stride[0] for side in x.shape[2:])
        if rest or not _worth_it(weight, self.stride):
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)
        return _Convolution.apply(_short(x), _short(weight), self.bias, self.stride[0], self.padding[0], False)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the same for its weights' gradient; where its result is at most 8 x 8, so is its input's gradient."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if not _worth_it(weight, self.stride):
            return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding)
        return _Convolution.apply(_short(x), _short(weight), self.bias, self.stride[0], self.padding[0], True)


class WideConv2d(nn.Conv2d):
    """nn.Conv2d for wide windows, right on Intel's matrix units (AMX), too.

    There the oneDNN of PyTorch 2.14 (3.12.0), in bf16, makes something else of 8 or 12 channels by windows that are 8 or 12 wide. So such
    images get channels of zeros besides.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if self.in_channels in (8, 12):
            x, weight = (F.pad(each, (0, 0, 0, 0, 0, 8)) for each in (x, weight))
        return self._conv_forward(x, weight, self.bias)


class Flatten(nn.Flatten):
    """nn.Flatten of N x C x H x W, whose gradient has the channels of a pixel side by side, as has what goes in.

    Where the two differ, a CPU takes thirty times as long over the gradient of the layer before.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(_side_by_side)
        return super().forward(x)


class Unflatten(nn.Unflatten):
    """nn.Unflatten to N x C x H x W, for the same reason with the channels of a pixel side by side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _side_by_side(super().forward(x))


class Columns(nn.Module):
    """Puts each pixel's next `width` - 1 to its right beside it, as channels: N x C x H x W to N x (width C) x H+2p x W+2p-width+1.

    A convolution of `width` x 1 is then one of `width` x `width` on the image itself; and on three channels a CPU is slow.
    """

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.width, self.padding = width, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (self.padding,) * 4)
        places = x.shape[3] - self.width + 1
        return torch.cat([x[..., k : k + places] for k in range(self.width)], 1)


class HugeLinear(nn.Linear):
    """nn.Linear, for so many weights that a step takes as long as they take to be read: in bf16 on a CPU they are shortened, and their
    gradients lengthened, rows by rows that stay in the cache, instead of all to memory and back.

    The gradient's memory is kept: what torch.autograd.grad found is written over when the next backward pass finds another.
    """

    memory: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu" or x.dtype == torch.float64:  # which autocast leaves as it is
            return super().forward(x)
        lent = None
        if torch.is_grad_enabled():
            lent, self.memory = self.memory, None  # so that a second pass before this one's way back gets its own
        product = _RowsByRows.apply(x.to(torch.get_autocast_dtype("cpu")), self.weight, lent, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _RowsByRows(torch.autograd.Function):
    """N x inputs, in short floats, and outputs x inputs, float32, to N x outputs."""

    @staticmethod
    def forward(ctx, x, weight, lent, layer):
        ctx.save_for_backward(x, weight)
        ctx.lent, ctx.layer = lent, layer
        return torch.cat([x @ rows.to(x.dtype).T for rows in weight.split(ROWS)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_x = torch.zeros(x.shape, device=x.device)
        of_weight = torch.empty_like(weight) if ctx.lent is None or weight.grad is not None else ctx.lent
        ctx.lent, ctx.layer.memory = None, of_weight
        for of_rows, rows, part in zip(gradient.split(ROWS, 1), weight.split(ROWS), of_weight.split(ROWS), strict=True):
            of_x += of_rows @ rows.to(x.dtype)
            part.copy_(of_rows.T @ x)
        return of_x.to(x.dtype), of_weight.view_as(weight), None, None


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _worth_it(weight: torch.Tensor, stride: tuple[int, ...]) -> bool:
    """Whether PyTorch's own takes longer over the gradient of this weight."""
    short = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32  # which autocast shortens, not float64
    return short and stride[0] > 1 and weight.device.type == "cpu" and torch.is_grad_enabled()


def _short(x: torch.Tensor) -> torch.Tensor:
    """In the short floats of autocast, the channels of a pixel side by side."""
    return x.to(torch.get_autocast_dtype("cpu"), memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """conv2d, or conv_transpose2d: each is the other's way back. Backwards it does only what can be differentiated again."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, transposed):
        ctx.save_for_backward(x, weight)
        ctx.form = stride, padding, transposed
        if not transposed and x.shape[3] <= SMALL:
            return _product(x, weight, bias, stride, padding)
        bias = None if bias is None else bias.to(x.dtype)
        return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, transposed = ctx.form
        gradient = _side_by_side(gradient)
        of_x = of_weight = of_bias = None
        to_x, to_weight = (_leads_on(node) for node, _ in ctx.next_functions[:2])
        if to_x:
            of_x = _Convolution.apply(gradient, weight, None, stride, padding, not transposed)
        if to_weight:
            large, small = (gradient, x) if transposed else (x, gradient)
            of_weight = _weight_gradient(large, small, weight.shape[-1], stride, padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3), dtype=torch.float32)
        return of_x, of_weight, of_bias, None, None, None


def _leads_on(node: torch.autograd.graph.Node | None) -> bool:
    """Whether this backward pass goes on to a node; ctx.needs_input_grad only tells whether one could.

    Through D to the images it isn't after D's weights, and on the way to these not after the images. Of a leaf the engine won't tell.
    """
    return node is not None and (not node.next_functions or torch._C._will_engine_execute_node(node))


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int) -> torch.Tensor:
    """conv2d as one matrix product, which is faster for small images: its windows (Nhw x kernel kernel C) with the weight."""
    height, width = ((side + 2 * padding - weight.shape[2]) // stride + 1 for side in x.shape[2:])
    result = torch.empty(len(x), len(weight), height, width, dtype=x.dtype, memory_format=torch.channels_last)
    windows = _windows(x, height, width, weight.shape[2], stride, padding)
    torch.mm(windows, weight.permute(0, 2, 3, 1).flatten(1).T, out=result.permute(0, 2, 3, 1).view(-1, len(weight)))
    return result if bias is None else result.add_(bias.view(-1, 1, 1))


def _weight_gradient(large: torch.Tensor, small: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """Of the convolution that takes `large` (N x C x H x W) to the shape of `small` (N x c x h x w): c x C x kernel x kernel.

    It is the product of `small` as a matrix (Nhw x c) and of the windows of `large`.
    """
    windows = _windows(large, *small.shape[2:], kernel, stride, padding)
    product = small.permute(0, 2, 3, 1).flatten(0, 2).T @ windows
    return product.view(len(product), kernel, kernel, -1).permute(0, 3, 1, 2)


def _windows(x: torch.Tensor, height: int, width: int, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """Of N x C x H x W, channels last, height x width squares of kernel x kernel: a matrix of N height width x kernel kernel C.

    Where nothing is differentiated again, it lies in memory that the next call writes over: new memory of 32 MB or more comes from the
    system, page by page.
    """
    global _space
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # N x H x W x C
    image, row, column, _ = padded.stride()
    shape = len(x), height, width, kernel, kernel * x.shape[1]  # each row of a window lies in one piece
    windows = padded.as_strided(shape, (image, stride * row, stride * column, row, 1))
    if not torch.is_grad_enabled():
        if _space.numel() < windows.numel() or _space.dtype != windows.dtype:
            _space = torch.empty(windows.numel(), dtype=windows.dtype)
        windows = _space[: windows.numel()].view(shape).copy_(windows)
    return windows.reshape(len(x) * height * width, -1)
