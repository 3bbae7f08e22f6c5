"""UniRepLKNet: a kernel that trains as six and a norm of responses, by other means; folded, dilated, refused."""

import copy

import pytest
import timm
import torch
from test_recnext import normed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import close, create, image

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.attention import DilatedReparamBlock
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.models.traits import formed
from timm_mobilevit_zoo.models.unireplknet import Block, GlobalResponseNorm, ResponseMlp

SIZES = [(16, 16), (13, 18), (3, 5), (1, 1)]


def spread(conv, step):
    """The kernel with zeros between its cells, for one that has no dilation."""
    side = (conv.kernel_size[0] - 1) * step + 1
    whole = nn.Conv2d(conv.in_channels, conv.in_channels, side, groups=conv.in_channels, dtype=conv.weight.dtype)
    whole.weight = nn.Parameter(torch.zeros_like(whole.weight))
    whole.weight.data[:, :, ::step, ::step] = conv.weight
    return whole


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_kernel_computes_its_equations_and_folds(size):
    module, x = seed_weights(DilatedReparamBlock(6)).eval(), torch.randn(2, 6, *size)
    ours, folded = module(x), fuse(nn.Sequential(module).eval())
    assert [type(one) for one in folded] == [nn.Conv2d]
    assert folded[0].kernel_size == (13, 13)
    close(folded(x), ours)
    module, x = module.double(), x.double()
    steps = (1, 1, 2, 3, 4, 5)
    assert [conv.kernel_size[0] for conv, _ in module.branches] == [13, 5, 7, 3, 3, 3]
    theirs = sum(
        normed((spread(conv, step), norm), x) for (conv, norm), step in zip(module.branches, steps, strict=True)
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_response_norm_computes_its_equation():
    module, x = seed_weights(GlobalResponseNorm(5)), torch.randn(2, 4, 3, 5)
    for one, y in zip(x, module(x), strict=True):
        lengths = one.flatten(0, 1).square().sum(0).sqrt()
        share = lengths / lengths.mean()
        torch.testing.assert_close(y, one + module.weight[0] * share * one + module.bias[0], rtol=1e-5, atol=1e-5)
    portable = formed(nn.Sequential(copy.deepcopy(module)), "portable")
    assert type(portable[0]) is not GlobalResponseNorm
    close(portable(x), module(x))
    fresh = GlobalResponseNorm(5)
    assert torch.equal(fresh(x), x)
    assert torch.isfinite(fresh(torch.zeros_like(x))).all()


@torch.no_grad()
def test_fuse_makes_the_response_norms_bias_the_last_layers():
    module, x = seed_weights(ResponseMlp(4)).eval(), torch.randn(2, 3, 5, 4)
    fused = fuse(nn.Sequential(module).eval())
    assert fused[0].norm.bias is None
    assert fused[0].fc2.bias.any()
    close(fused(x), module(x))
    for one in (module, fused):
        close(torch.jit.script(one)(x), module(x))


@torch.no_grad()
def test_fuse_leaves_one_kernel_of_six_and_no_batch_norm():
    model, x = seed_weights(create("unireplknet_a", num_classes=5)), image()
    fused = fuse(model)
    assert not [
        m for m in fused.modules() if isinstance(m, (DilatedReparamBlock, _BatchNorm, timm.layers.LayerScale2d))
    ]
    assert {m.kernel_size for m in fused.modules() if isinstance(m, nn.Conv2d) and m.groups > 1} == {(3, 3), (13, 13)}
    close(fused(x), model(x))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_dilated_block_keeps_its_cells(size):
    plain, dilated = (seed_weights(Block(8, DilatedReparamBlock(8), 0.0, step)).eval() for step in (1, 3))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))


def test_the_norm_of_pooled_channels_belongs_to_the_classifier():
    model = create("unireplknet_a", num_classes=3)
    assert (type(model.head_norm), model.head_norm.eps) == (nn.LayerNorm, 1e-6)
    model.reset_classifier(4, "catavgmax")
    assert model.head_norm.normalized_shape == (640,)
    model.reset_classifier(0)
    assert not [key for key in model.state_dict() if key.startswith("head")]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DilatedReparamBlock(0), "dim=0 must be a whole number from 1"),
        (
            lambda: timm.create_model("unireplknet_a", embed_dims=(3, 6, 12, 24)),
            r"embed_dims=\(3, 6, 12, 24\) must be at least 4",
        ),
        (lambda: timm.create_model("unireplknet_a", depths=(2, 2)), r"depths=\(2, 2\) needs 4 entries"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
