"""RepNeXt: kernels that are trained as sums of several, by other means; folded, dilated and refused."""

import pytest
import timm
import torch
from test_recnext import depthwise
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import close, create, image

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.attention import ChunkConv
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.models.repnext import CopyConv, SummedConv

SIZES = [(16, 16), (13, 18), (3, 5), (1, 1)]


def square(kernel, side):
    """A kernel of any shape in the middle of a square one, that of two cells a side at the corners of three."""
    whole = kernel.new_zeros(kernel.shape[0], 1, side, side)
    h, w = kernel.shape[2:]
    rows, columns = ([i for i in range(side) if abs(i - side // 2) <= n // 2] for n in (h, w))
    if (h, w) == (2, 2):
        rows = columns = [side // 2 - 1, side // 2 + 1]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            whole[:, :, row, column] = kernel[:, :, i, j]
    return whole


def summed(module, x, stride=1):
    """The sum as one convolution, shift by shift; a column of a row is their outer product."""
    side = module.convs[0].kernel_size[0]
    whole = nn.Conv2d(x.shape[1], x.shape[1], side, groups=x.shape[1], dtype=x.dtype)
    kernels = [conv.weight for conv in module.convs]
    kernels += [torch.einsum("cdin,cdnj->cdij", column.weight, row.weight) for row, column in module.pairs]
    whole.weight = nn.Parameter(sum(square(kernel, side) for kernel in kernels))
    bias = sum(conv.bias for conv in module.convs)
    return depthwise(whole, x, stride) + bias[:, None, None]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_mixer_computes_its_equations(size):
    module, x = seed_weights(ChunkConv(12)).eval(), torch.randn(2, 12, *size)
    ours = module(x)
    module, x = module.double(), x.double()
    row, column = module.large
    line = (square(row.weight, 11), row.bias), (square(column.weight, 11), column.bias)
    y = x[:, 9:]
    for kernel, bias in line:
        conv = nn.Conv2d(3, 3, 11, groups=3, dtype=torch.float64)
        conv.weight = nn.Parameter(kernel)
        y = depthwise(conv, y) + bias[:, None, None]
    theirs = torch.cat([x[:, :3], summed(module.small, x[:, 3:6]), summed(module.medium, x[:, 6:9]), y], dim=1)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_what_halves_a_map_computes_its_equations(size):
    module, x = seed_weights(CopyConv(3, 2, 1)).eval(), torch.randn(2, 3, *size)
    ours = module(x)
    module, x = module.double(), x.double()
    theirs = module.norm1(torch.cat([summed(part, x, 2) for part in (module.small, module.medium)], dim=1))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_dilated_mixer_keeps_its_cells(size):
    plain, dilated = (seed_weights(ChunkConv(8, dilation)).eval() for dilation in (1, 3))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))


@pytest.mark.parametrize("kwargs", [{}, {"output_stride": 8}])
@torch.no_grad()
def test_fuse_leaves_one_kernel_of_each_sum_and_no_norm(kwargs):
    model, x = seed_weights(create("repnext_m0", num_classes=5, **kwargs)), image()
    fused = fuse(model)
    assert not [module for module in fused.modules() if isinstance(module, (SummedConv, _BatchNorm))]
    sides = {m.kernel_size for m in fused.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert sides == {(3, 3), (7, 7), (1, 11), (11, 1)}
    assert fused.get_classifier() is fused.head
    close(fused(x), model(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChunkConv(0), "dim=0 must be a whole number from 1"),
        (lambda: ChunkConv(6), "dim=6 must be a multiple of 4"),
        (lambda: ChunkConv(8, dilation=0), "dilation=0 must be a whole number from 1"),
        (
            lambda: timm.create_model("repnext_m0", embed_dims=(40, 80, 160, 300)),
            r"embed_dims=\(40, 80, 160, 300\) must begin with a multiple of 4 and double",
        ),
        (lambda: timm.create_model("repnext_m0", embed_dims=(2, 4, 8, 16)), "must begin with a multiple of 4"),
        (lambda: timm.create_model("repnext_m0", depths=(1, 1, 1)), r"depths=\(1, 1, 1\) needs 4 entries"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
