"""RecNeXt: two files for each name, classifiers behind norms of their own, and mixers by other means."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from zoo import GOLDEN, author_weights, close, create, image

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.attention import RecAttention, RecConv
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.export.plain import plain
from timm_mobilevit_zoo.models._recursive import LinearAttention
from timm_mobilevit_zoo.models.probe import seed_weights
from timm_mobilevit_zoo.models.recnext import published_top1

NAME = "recnext_m0"
SIZES = ("m0", "m1", "m2", "m3", "m4", "m5", "a0", "a1", "a2", "a3", "a4", "a5", "t", "s", "b")
CONFIGS = Path(__file__).resolve().parent.parent / "hub_configs"


@pytest.mark.parametrize("size", SIZES)
def test_each_name_has_the_authors_two_files(size):
    name = f"recnext_{size}"
    assert timm.get_pretrained_cfg(name).tag == "dist_300e_in1k"
    for tag, file in (("dist_300e_in1k", name), ("base_300e_in1k", f"{name}.base_300e_in1k")):
        assert timm.get_pretrained_cfg(f"{name}.{tag}").hf_hub_id.partition("@")[0] == f"suous/{name}.{tag}"
        config = json.loads((CONFIGS / f"{file}.json").read_text(encoding="utf-8"))
        assert (config["architecture"], config["tag"]) == (name, tag)
        assert config["published"] == {"imagenet_1k_top1": published_top1[f"{name}.{tag}"], "claimed_by": "authors"}
    assert published_top1[f"{name}.dist_300e_in1k"] > published_top1[f"{name}.base_300e_in1k"]


def test_classifiers_begin_as_the_authors():
    model = create(NAME)
    for classes in (1000, 500):
        for head, norm in ((model.head, model.head_norm), (model.head_dist, model.head_dist_norm)):
            assert head.weight.shape == (classes, 320)
            assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert not head.bias.any()
            assert type(norm) is nn.BatchNorm1d
        model.reset_classifier(500)
    model.reset_classifier(0)
    assert not [key for key in model.state_dict() if key.startswith("head")]


@pytest.mark.parametrize("num_classes", [0, 7])
def test_norms_of_classifiers_stay_with_classifiers(num_classes, tmp_path):
    golden = next(path for path in GOLDEN if path.stem == NAME)
    save_file(author_weights(golden), tmp_path / "authors.safetensors")
    overlay = {"file": str(tmp_path / "authors.safetensors")}
    model = timm.create_model(NAME, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay).eval()
    assert model(image()).shape == (2, num_classes or 320)
    if num_classes:
        assert torch.equal(model.head_norm.running_var, author_weights(golden)["head.head.norm.running_var"])


def test_fuse_makes_one_classifier():
    model = seed_weights(create("recnext_t", num_classes=5))
    fused, x = fuse(model), image()
    assert not [module for module in fused.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert fused.get_classifier() is fused.head
    close(fused(x), model(x))
    for network in (model, fused):
        network.global_pool = timm.layers.SelectAdaptivePool2d(pool_type="", flatten=False)
    close(fused(x), model(x))
    assert fused(x).shape == (2, 5, 1, 2)
    bare = create(NAME, num_classes=0)
    close(fuse(bare)(x), bare(x))


@pytest.mark.parametrize(("name", "strides"), [(NAME, [2, 4, 8, 16, 32]), ("recnext_t", [2, 8, 16, 32, 64])])
def test_strides(name, strides):
    assert create(name, features_only=True).feature_info.reduction() == strides


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (NAME, {"embed_dims": (1, 2, 4, 8)}, r"embed_dims=\(1, 2, 4, 8\) must begin with 2 or more"),
        (NAME, {"depths": (1, 0, 3, 2)}, r"depths=\(1, 0, 3, 2\) needs whole numbers from 1"),
        (NAME, {"mlp_ratio": 0}, "mlp_ratio=0 leaves no hidden channel"),
        ("recnext_a0", {"num_heads": (2, 4, 8)}, r"num_heads=\(2, 4, 8\) needs 4 entries, one a stage"),
        ("recnext_a0", {"num_heads": (2, 4, 8, 9)}, "dim=320 must be even and a multiple of num_heads=9"),
        ("recnext_t", {"embed_dims": (60, 128, 256, 512)}, r"embed_dims=\(60, 128, 256, 512\) must be multiples of 8"),
        ("recnext_t", {"depths": (0, 2, 0, 10)}, r"depths=\(0, 2, 0, 10\) needs 4 entries, one a stage, whole numbers"),
        ("recnext_t", {"depths": 2}, "depths=2 needs 4 entries"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (RecConv, {"dim": 0}, "dim=0 must be a whole number from 1"),
        (RecConv, {"levels": 0}, "levels=0 must be a whole number from 1"),
        (RecConv, {"kernel_size": 4}, "kernel_size=4 must be odd"),
        (RecAttention, {"dim": 9, "num_heads": 3}, "dim=9 must be even and a multiple of num_heads=3"),
        (RecAttention, {"kernel_size": 2}, "kernel_size=2 must be odd"),
        (RecAttention, {"dilation": True}, "dilation=True must be a whole number from 1"),
    ],
)
def test_mixers_name_wrong_arguments(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**{"dim": 8, **arguments})


def depthwise(conv, x, stride=1):
    """A depthwise convolution once more, shift by shift."""
    r, (H, W) = conv.weight.shape[2] // 2, x.shape[2:]
    x = F.pad(x, (r, r, r, r))
    shifts = [(i, j) for i in range(2 * r + 1) for j in range(2 * r + 1)]
    y = sum(conv.weight[:, 0, i, j, None, None] * x[:, :, i : i + H, j : j + W] for i, j in shifts)
    return y[:, :, ::stride, ::stride]


def normed(layers, x, stride=1):
    conv, norm = layers
    if conv.groups == conv.in_channels:
        x = depthwise(conv, x, stride)
    else:
        weight = torch.block_diag(*conv.weight[:, :, 0, 0].chunk(conv.groups))
        x = torch.einsum("oc,bchw->bohw", weight, x)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    return (x - norm.running_mean[:, None, None]) * scale + norm.bias[:, None, None]


def recursive(module, x, level=0):
    """`conv_l(x + up(recursive of the halved map))`, as the paper's figure nests it."""
    conv = module.convs[module.levels - level]
    if level == module.levels:
        return depthwise(conv, x)
    coarse = recursive(module, depthwise(module.down, x, 2), level + 1)
    return depthwise(conv, x + F.interpolate(coarse, size=x.shape[2:], mode="bilinear"))


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_recursive_convolution_computes_its_equations(size, levels):
    module, x = seed_weights(RecConv(6, levels)).eval(), torch.randn(2, 6, *size)
    ours = module(x)
    torch.testing.assert_close(ours.double(), recursive(module.double(), x.double()), rtol=1e-5, atol=1e-6)


def attended(module, x):
    """Linear attention once more, cell by cell."""
    q, k = (1 + F.elu(normed(module.qk, x))).chunk(2, dim=1)
    q, k, v = (y.flatten(2).unflatten(1, (module.num_heads, -1)) for y in (q, k, x))
    weights = torch.einsum("bhdq,bhdk->bhqk", q, k)
    y = torch.einsum("bhqk,bhck->bhcq", weights / weights.sum(-1, keepdim=True), v)
    return y.flatten(1, 2).reshape(x.shape) + normed(module.pos, x)


@pytest.mark.parametrize("queries_first", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_recursive_attention_computes_its_equations(size, queries_first):
    module = seed_weights(RecAttention(12, 3, queries_first=queries_first)).eval()
    x = torch.randn(2, 12, *size)
    ours = module(x)
    module, x = module.double(), x.double()
    halved = attended(module.attn, normed(module.down, x, 2))
    rows, columns = (torch.arange(side) // 2 for side in size)
    theirs = normed(module.conv, x + halved[:, :, rows][..., columns])
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
@pytest.mark.parametrize(
    "build",
    [
        lambda d: RecConv(8, dilation=d),
        lambda d: RecAttention(8, dilation=d),
        lambda d: LinearAttention(8, 1, 4, 1, True, d),
    ],
    ids=["convolution", "attention", "attention alone"],
)
def test_a_dilated_mixer_keeps_its_cells(build, size):
    plain, dilated = (seed_weights(build(dilation)).eval() for dilation in (1, 3))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))


def test_maps_come_back_by_a_factor_that_every_runtime_knows():
    """LiteRT takes other cells of 4 for 7 than torch does: nearest neighbours by 2, then cut, are the same ones."""
    with quiet():
        graph = plain(seed_weights(create("recnext_a0")), image(96, 224, batch=1)).graph
    nodes = [node for node in graph.nodes if "upsample_nearest" in str(node.target)]
    sides = [(node.all_input_nodes[0].meta["val"].shape[2:], node.meta["val"].shape[2:]) for node in nodes]
    assert len(sides) == 14
    assert all(after == (2 * before[0], 2 * before[1]) for before, after in sides)
    x = torch.rand(1, 1, 4, 4)
    assert torch.equal(F.interpolate(x, scale_factor=2.0)[..., :7, :7], F.interpolate(x, size=(7, 7)))
