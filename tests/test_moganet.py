"""MogaNet: a module that looks near and far, files at two sizes, and what another code base calls the same."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812
from zoo import GOLDEN, author_weights, create

from timm_mobilevit_zoo.attention import MultiOrderGatedAggregation
from timm_mobilevit_zoo.models import places
from timm_mobilevit_zoo.models.probe import seed_weights

NAME = "moganet_xt"


def test_each_tag_has_the_authors_file():
    found = {variant: place.url for variant, place in places.places().items() if variant.startswith("moganet_")}
    begin = "https://github.com/Westlake-AI/MogaNet/releases/download/moganet-in1k-weights/moganet_"
    assert {
        variant: url.removeprefix(begin).removesuffix("_8xbs128_ep300.pth.tar") for variant, url in found.items()
    } == {
        "moganet_xt.in1k": "xtiny_sz224",
        "moganet_xt.in1k_256": "xtiny_sz256",
        "moganet_t.in1k": "tiny_sz224",
        "moganet_t.in1k_256": "tiny_sz256",
        "moganet_s.in1k": "small_sz224",
    }
    for variant in found:
        side = 256 if variant.endswith("_256") else 224
        cfg = timm.get_pretrained_cfg(variant)
        assert (cfg.input_size, cfg.crop_pct, cfg.pool_size) == ((3, side, side), 0.9, (side // 32, side // 32))


def test_files_of_the_code_that_gates_twice_are_refused(tmp_path):
    """OpenMixup's layout: to load such weights here would give other numbers than they were trained for."""
    golden = next(path for path in GOLDEN if path.stem == NAME)
    theirs = {re.sub(r"^(?!head)", "backbone.", key): value for key, value in author_weights(golden).items()}
    theirs = {key.replace("head.", "head.fc."): value for key, value in theirs.items()}
    save_file(theirs, tmp_path / "openmixup.safetensors")
    overlay = {"file": str(tmp_path / "openmixup.safetensors")}
    with pytest.raises(ValueError, match=r"the checkpoint does not fit MogaNet: \d+ missing"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)


def test_scales_decay_as_the_authors():
    """Theirs have a map's shape, so that timm's rule for what decay spares does not find them."""
    scales = [value for key, value in create(NAME).named_parameters() if key.endswith(".gamma")]
    assert len(scales) == 4 * 18
    assert {value.ndim for value in scales} == {4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dims": (32, 64, 100, 192)}, r"embed_dims=\(32, 64, 100, 192\) must be multiples of 8"),
        ({"depths": (3, 3, 10)}, r"depths=\(3, 3, 10\) needs 4 entries, one a stage"),
        ({"mlp_ratios": (8, 8, 4.5, 4)}, r"mlp_ratios=\(8, 8, 4.5, 4\) needs whole numbers from 1"),
        ({"proj_drop_rate": 1}, "proj_drop_rate=1 must be at least 0 and below 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(NAME, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"dim": 12}, "dim=12 must be a multiple of 8"),
        ({"dilation": 1.5}, "dilation=1.5 must be a whole number from 1"),
    ],
)
def test_the_module_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiOrderGatedAggregation(**{"dim": 8, **arguments})


def pointwise(conv, x):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def reaching(conv, x, gap):
    """A depthwise convolution once more, shift by shift, of cells that lie `gap` apart."""
    r, (H, W) = conv.weight.shape[2] // 2, x.shape[2:]
    x = F.pad(x, (gap * r, gap * r, gap * r, gap * r))
    shifts = [(i, j) for i in range(2 * r + 1) for j in range(2 * r + 1)]
    cells = (conv.weight[:, 0, i, j, None, None] * x[:, :, gap * i :, gap * j :][:, :, :H, :W] for i, j in shifts)
    return sum(cells) + conv.bias[:, None, None]


def silu(x):
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_gated_aggregation_computes_its_equations(size):
    module = seed_weights(MultiOrderGatedAggregation(16)).eval()
    x = torch.randn(2, 16, *size)
    ours = module(x)
    module, x = module.double(), x.double()
    z = pointwise(module.proj_in, x)
    mean = z.flatten(2).mean(2)[:, :, None, None]
    y = silu(z + module.sigma.gamma * (z - mean))
    value = reaching(module.value.near, y, 1)
    parts = value[:, :2], reaching(module.value.middle, value[:, 2:8], 2), reaching(module.value.far, value[:, 8:], 3)
    value = pointwise(module.value.proj, torch.cat(parts, 1))
    theirs = pointwise(module.proj, silu(pointwise(module.gate, y)) * silu(value))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_a_dilated_module_keeps_its_cells(size):
    plain, dilated = (seed_weights(MultiOrderGatedAggregation(16, dilation)).eval() for dilation in (1, 3))
    x = torch.randn(2, 16, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))
