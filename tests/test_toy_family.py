"""A family is known only in its own file: this one is a toy's, and fuse, maps and every exporter take its layers.

Its attention is written with what phones' runtimes do not know, and its convolution has two branches while it trains.
What becomes of both is said here, beside their classes, as in a family of the package.
"""

from importlib.util import find_spec

import pytest
import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F  # noqa: N812
from zoo import close, image

from timm_mobilevit_zoo import export, fuse
from timm_mobilevit_zoo.export.formats import FORMATS
from timm_mobilevit_zoo.maps import attention_maps
from timm_mobilevit_zoo.maps.panels import panels_of
from timm_mobilevit_zoo.maps.recording import record
from timm_mobilevit_zoo.models._build import build_staged
from timm_mobilevit_zoo.models._staged import Stage, StagedModel
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.models.traits import form_of, keys_of, pooled_keys

SIZE = 64  # pixels


class ToyAttention(nn.Module):
    """Attention of each cell to every second one. `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=1)
        k, v = k[:, :, ::2, ::2].flatten(2), v[:, :, ::2, ::2].flatten(2)  # (B, C, M)
        scores = q.flatten(2).transpose(1, 2) @ k * x.shape[1] ** -0.5  # (B, N, M)
        weights = scores.exp()
        attn = self.attn_drop((weights / weights.cumsum(dim=-1)[..., -1:])[:, None])
        return self.proj((attn[:, 0] @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape))


@keys_of(ToyAttention)
def lay_out(attn, shape):
    return pooled_keys(shape[2:], 2)


@form_of(ToyAttention)
class PortableToyAttention(nn.Module):
    """The same with a softmax."""

    def __init__(self, attn):
        super().__init__()
        self.qkv, self.proj = attn.qkv, attn.proj

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=1)
        k, v = k[:, :, ::2, ::2].flatten(2), v[:, :, ::2, ::2].flatten(2)
        attn = (q.flatten(2).transpose(1, 2) @ (k * x.shape[1] ** -0.5)).softmax(dim=-1)
        return self.proj((attn @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape))


class TwoBranches(nn.Module):
    """A 3x3 and a 1x1 convolution, summed. `(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))`."""

    def __init__(self, dim, out_dim, stride):
        super().__init__()
        self.wide = nn.Conv2d(dim, out_dim, 3, stride, 1)
        self.narrow = nn.Conv2d(dim, out_dim, 1, stride)

    def forward(self, x):
        return self.wide(x) + self.narrow(x)


@form_of(TwoBranches, kind="fused")
def one_branch(layer):
    conv = nn.Conv2d(layer.wide.in_channels, layer.wide.out_channels, 3, layer.wide.stride, 1)
    conv.load_state_dict(
        {
            "weight": layer.wide.weight + F.pad(layer.narrow.weight, (1, 1, 1, 1)),
            "bias": layer.wide.bias + layer.narrow.bias,
        }
    )
    return conv


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = ToyAttention(dim)

    def forward(self, x):
        return x + self.attn(self.norm1(x))


class Toy(StagedModel):
    def __init__(self, in_chans=3, num_classes=10, global_pool="avg", drop_rate=0.0):
        dims = (8, 8, 16, 16)
        downsample = [TwoBranches(before, dim, 2) for before, dim in zip((8, *dims), dims, strict=False)]
        super().__init__(
            nn.Sequential(TwoBranches(in_chans, 8, 2), nn.BatchNorm2d(8), nn.ReLU()),
            [Stage(down, [Block(dim)] * (i % 2)) for i, (down, dim) in enumerate(zip(downsample, dims, strict=True))],
            nn.BatchNorm2d(dims[-1]),
            embed_dims=dims,
            stem_dim=8,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


default_cfgs = generate_default_cfgs(
    {
        "toy_of_the_tests.untrained": {
            "num_classes": 10,
            "input_size": (3, SIZE, SIZE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.layers.0.wide",
            "classifier": "head",
        }
    }
)
__all__ = []


@register_model
def toy_of_the_tests(pretrained=False, **kwargs):
    return build_staged(Toy, lambda state_dict, model: state_dict, "toy_of_the_tests", pretrained, **kwargs)


@pytest.fixture(scope="module")
def toy():
    return seed_weights(timm.create_model("toy_of_the_tests").eval())


def kinds(network):
    return {type(module) for module in network.modules()}


def test_fuse_folds_its_branches_and_the_norm_behind_them(toy):
    fused, x = fuse(toy), image(SIZE, SIZE)
    assert TwoBranches in kinds(toy)
    assert TwoBranches not in kinds(fused)
    assert nn.BatchNorm2d not in kinds(fused.stem)
    close(fused(x), toy(x))


def test_maps_know_where_its_keys_lie(toy):
    x = image(SIZE, SIZE, batch=1)
    found = attention_maps(toy, x)
    assert {name: tuple(attn.shape) for name, attn in found.items()} == {
        f"stage{i}.blocks.0.attn": (1, 1, side * side, (side // 2) ** 2) for i, side in ((2, 8), (4, 2))
    }
    panels = panels_of(toy, x, record(toy, x))
    assert [(panel.kind, tuple(panel.values.shape)) for panel in panels] == [
        ("received", (side, side)) for side in (8, 2)
    ]


@pytest.mark.parametrize(
    "format", [name for name, about in FORMATS.items() if all(find_spec(module) for module in about.modules)]
)
def test_every_exporter_here_writes_it(toy, format, tmp_path):
    path = tmp_path / f"toy{FORMATS[format].suffix}"
    found = getattr(export, f"to_{format}")(toy, str(path), precision="fp32")
    assert found["architecture"] == "toy_of_the_tests"
    if FORMATS[format].run:
        assert found["checks"]["random"]["error"] < 1e-4
    if format == "executorch":  # with cumsum, which XNNPACK does not know, there are more
        assert found["xnnpack"] == {"regions": 1, "left": {}}
