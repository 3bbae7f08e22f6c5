"""Every module of the catalogue: any map, its shape kept, at home in timm's networks; and the same by other means."""

import json
from pathlib import Path

import einops
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from zoo import EVERY_SIZE, author_weights

from timm_mobilevit_zoo import attention
from timm_mobilevit_zoo.attention import (
    AdditiveTokenMixer,
    CloAttention,
    EfficientModulation,
    LocalGlobalLocalAttention,
    MobileViTAttention,
    MobileViTv3Block,
)
from timm_mobilevit_zoo.models import mobilevit_wide
from timm_mobilevit_zoo.models._pooled import PartialAvgPool2d


def create(name, dim=32, **kwargs):
    torch.manual_seed(0)
    return getattr(attention, name)(dim, **kwargs).eval()


def with_switch(module):
    """Its parts that compute attention by a fused kernel or a plain one."""
    return [part for part in module.modules() if hasattr(part, "fused_attn")]


every_module = pytest.mark.parametrize("name", attention.__all__)
every_softmax = pytest.mark.parametrize("name", [name for name in attention.__all__ if with_switch(create(name))])


@every_module
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 7), (13, 31), (56, 40)])
def test_shape_is_kept(name, size):
    module, x = create(name), torch.randn(2, 32, *size, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


HOSTS = {
    "resnet18": lambda layer: {"block_args": {"attn_layer": layer}},
    "resnet50": lambda layer: {"block_args": {"attn_layer": layer}},
    "seresnet33ts": lambda layer: {"attn_layer": layer},  # a ByobNet
}


@pytest.mark.parametrize(
    ("name", "network"),
    # Each module in one network, and one module in each: all pairs with EVERY_SIZE=1.
    [(n, host) for n in attention.__all__ for host in HOSTS if EVERY_SIZE or host == "resnet18" or n == "CloAttention"],
)
def test_serves_as_timms_attention_layer(name, network):
    layer = getattr(attention, name)
    model = timm.create_model(network, num_classes=3, **HOSTS[network](layer)).eval()
    assert sum(isinstance(module, layer) for module in model.modules()) >= 8
    assert model(torch.rand(1, 3, 75, 101)).shape == (1, 3)


@every_module
def test_device_and_dtype(name):
    module = create(name, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())


@every_module
def test_compilers(name):
    module, x = create(name), torch.randn(2, 32, 13, 18)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


# It takes seconds to minutes to generate code: the shortest here, all with EVERY_SIZE=1.
@pytest.mark.parametrize("name", attention.__all__ if EVERY_SIZE else ["CloAttention"])
def test_generated_code(name):
    module, x = create(name), torch.randn(2, 32, 13, 18)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


@every_softmax
def test_fused_and_plain_kernels_agree(name):
    module, x = create(name), torch.randn(2, 32, 13, 18)
    expected = module(x)
    for part in with_switch(module):
        part.fused_attn = not part.fused_attn
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"dim": True}, "dim=True must be a whole number from 1"),
        ({"transformer_dim": 66}, "transformer_dim=66 must be a multiple of num_heads=4"),
        ({"depth": 0}, "depth=0 must be a whole number from 1"),
        ({"patch_size": 2.0}, "patch_size=2.0 must be a whole number from 1"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 leaves no hidden channel of transformer_dim=64"),
        ({"drop_path": (0.1,)}, r"drop_path=\(0.1,\) must be 2 rates of at least 0 and below 1, one for each block"),
        ({"drop_path": (0.1, 1.0)}, r"drop_path=\(0.1, 1.0\) must be 2 rates"),
    ],
)
def test_mobilevitv3_block_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileViTv3Block(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 30}, "dim=30 must be a multiple of num_heads=4"),
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"dim": 32.0}, "dim=32.0 must be a whole number from 1"),
        ({"num_heads": 0, "group_split": (0, 0)}, "num_heads=0 must be a whole number from 1"),
        ({"group_split": 4}, "group_split=4 must be two counts"),
        ({"group_split": (4,)}, "must be two counts"),
        ({"group_split": (3, 2)}, r"group_split=\(3, 2\) must be two counts of heads that sum to num_heads=4"),
        ({"group_split": (5, -1)}, r"group_split=\(5, -1\)"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"window_size": 0}, "window_size=0 must be a whole number from 1"),
    ],
)
def test_clo_attention_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CloAttention(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"transformer_dim": 0}, "transformer_dim=0 must be a whole number from 1"),
        ({"patch_size": 2.0}, "patch_size=2.0 must be a whole number from 1"),
        ({"depth": 0}, "depth=0 must be a whole number from 1"),
        ({"mlp_dim": -1}, "mlp_dim=-1 must be a whole number from 1"),
        ({"num_heads": 0}, "num_heads=0 must be a whole number from 1"),
        ({"head_dim": "64"}, "head_dim=64 must be a whole number from 1"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"drop_path": [0.1]}, r"drop_path=\[0.1\] must be one rate .* or one for each of 3 blocks"),
        ({"drop_path": (0.0, 0.1, 1.5)}, r"drop_path=\(0.0, 0.1, 1.5\) must be one rate of at least 0 and below 1"),
    ],
)
def test_mobilevit_attention_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileViTAttention(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (2, 2, 4, 3)}, "needs 3 entries, one for each of the last three stages"),
        ({"transformer_dims": (60, 0, 96)}, r"transformer_dims=\(60, 0, 96\) needs whole numbers from 1"),
        ({"stem_dims": (16,)}, r"stem_dims=\(16,\) must be two counts of channels"),
        ({"stem_dims": 16}, "stem_dims=16 must be two counts of channels"),
        ({"stem_dims": (16, 16.0)}, "must be two counts of channels"),
        ({"stem_dims": (16, 0)}, r"stem_dims=\(16, 0\) must be two counts of channels"),
        ({"num_features": 0}, "num_features=0 must be a whole number from 1"),
        ({"expand_ratio": 0}, "expand_ratio=0 must be a whole number from 1"),
        ({"patch_size": 0}, "patch_size=0 must be a whole number from 1"),
    ],
)
def test_mobilevit_wide_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("mobilevit_wide_xxs", **arguments)


@pytest.mark.parametrize("arguments", [{"dim": 0}, {"dim": 32.0}, {"dilation": 0}, {"dilation": "2"}])
def test_additive_mixer_names_wrong_arguments(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be a whole number from 1"):
        AdditiveTokenMixer(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (2, 2, 4)}, r"depths=\(2, 2, 4\) needs 4 entries, one a stage"),
        ({"embed_dims": (1, 56, 112, 220)}, "must begin with 2 or more"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 leaves no hidden channel"),
        ({"proj_drop_rate": 1.0}, "proj_drop_rate=1.0 must be at least 0 and below 1"),
    ],
)
def test_casvit_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("casvit_xs", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"expand_ratio": 1.5}, "expand_ratio=1.5 must be a whole number from 1"),
        ({"kernel_size": 6}, "kernel_size=6 must be odd"),
        ({"kernel_size": 0}, "kernel_size=0 must be a whole number from 1"),
        ({"dilation": 0}, "dilation=0 must be a whole number from 1"),
    ],
)
def test_efficient_modulation_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientModulation(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_depths": (1, 2)}, r"attn_depths=\(1, 2\) needs 4 entries, whole numbers from 0, one a stage"),
        ({"attn_depths": 2}, "attn_depths=2 needs 4 entries"),
        ({"attn_depths": (0, 0, 1, -1)}, r"attn_depths=\(0, 0, 1, -1\) needs 4 entries, whole numbers from 0"),
        ({"attn_mlp_ratios": (4, 4, 0, 4)}, r"attn_mlp_ratios=\(4, 4, 0, 4\) needs whole numbers from 1"),
        ({"depths": (2, 2, 6)}, r"depths=\(2, 2, 6\) needs 4 entries, one a stage"),
        ({"expand_ratio": 0}, "expand_ratio=0 must be a whole number from 1"),
    ],
)
def test_efficientmod_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("efficientmod_xxs", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_splits": (4, 4, 8, 16)}, "group_split=4 must be two counts"),
        ({"group_splits": ((3, 2), (2, 2), (4, 4), (4, 12))}, r"group_split=\(3, 2\) must be two counts"),
        ({"embed_dims": (30, 64, 128, 256)}, "dim=30 must be a multiple of num_heads=4"),
        ({"embed_dims": (1, 64, 128, 256), "num_heads": (1, 4, 8, 16)}, "must begin with 2 or more"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 leaves no hidden channel"),
    ],
)
def test_cloformer_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("cloformer_xxs", **arguments)


def clo_attention_again(module, x, heads, split, window):
    """The layer's equations once more, in float64, with einops and loops."""
    module, x = module.double(), x.double()
    H, W = x.shape[2:]
    d = x.shape[1] // heads

    def project(conv, x):
        return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]

    branches = []
    if split[0]:
        local = module.local
        qkv = project(local.qkv, x)
        side = local.mix.kernel_size[0]
        patches = nn.functional.unfold(qkv, side, padding=side // 2)
        patches = einops.rearrange(patches, "b (c k) n -> b c k n", k=side * side)
        kernel = einops.rearrange(local.mix.weight, "c 1 i j -> c (i j)")
        mixed = torch.einsum("bckn,ck->bcn", patches, kernel) + local.mix.bias[:, None]
        q, k, v = einops.rearrange(mixed, "b (three c) (h w) -> three b c h w", three=3, h=H)
        hidden = project(local.gate[0], q * k)
        gate = project(local.gate[2], hidden * torch.sigmoid(hidden))
        branches.append(torch.tanh(gate / d**0.5) * v)
    if split[1]:
        pooled = module.pooled_attn
        cells = [
            x[:, :, i : i + window, j : j + window].mean((2, 3))
            for i in range(0, H, window)
            for j in range(0, W, window)
        ]
        q = einops.rearrange(project(pooled.q, x), "b (m d) h w -> b m (h w) d", d=d)
        kv = project(pooled.kv, torch.stack(cells, -1)[..., None])
        k, v = einops.rearrange(kv, "b (two m d) n 1 -> two b m n d", two=2, d=d)
        attn = (torch.einsum("bmqd,bmkd->bmqk", q, k) / d**0.5).softmax(-1)
        branches.append(einops.rearrange(torch.einsum("bmqk,bmkd->bmqd", attn, v), "b m (h w) d -> b (m d) h w", h=H))
    return project(module.proj, torch.cat(branches, 1))


@pytest.mark.parametrize("split", [(2, 2), (1, 3), (4, 0), (0, 4)])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_clo_attention_computes_its_equations(split, size, window):
    torch.manual_seed(0)
    module = CloAttention(16, 4, split, kernel_size=5, window_size=window).eval()
    x = torch.randn(2, 16, *size)
    ours = module(x)
    theirs = clo_attention_again(module, x, 4, split, window)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (13, 18), (3, 5), (8, 9)])
def test_exported_pooling_is_the_eager_one(size):
    pool, x = PartialAvgPool2d(4), torch.randn(2, 3, *size)
    exported = torch.export.export(pool, (x,)).module()(x)
    if size == (16, 24):
        assert torch.equal(exported, pool(x))
    torch.testing.assert_close(exported, pool(x))
    corner = x[:, :, 4 * ((size[0] - 1) // 4) :, 4 * ((size[1] - 1) // 4) :].mean((2, 3))
    torch.testing.assert_close(pool(x)[:, :, -1, -1], corner)


def additive_mixer_again(module, x):
    """The layer's equations once more, in float64, with loops over the cells that a kernel sees."""
    module, x = module.double(), x.double()
    d = module.mix.dilation[0]

    def depthwise(conv, x):
        H, W = x.shape[2:]
        padded = nn.functional.pad(x, (d, d, d, d))
        cells = [
            conv.weight[:, 0, i, j, None, None] * padded[:, :, d * i : d * i + H, d * j : d * j + W]
            for i in range(3)
            for j in range(3)
        ]
        return sum(cells) + conv.bias[:, None, None]

    def gates(module, x):
        conv, norm, _, to_one, _ = module.spatial
        y = (depthwise(conv, x) - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[
            :, None, None
        ]
        y = torch.relu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
        x = x * torch.sigmoid(torch.einsum("oc,bchw->bohw", to_one.weight[:, :, 0, 0], y))
        mean = einops.reduce(x[:, :, ::d, ::d], "b c h w -> b c", "mean")
        return x * torch.sigmoid(mean @ module.channel[0].weight[:, :, 0, 0].T)[:, :, None, None]

    q, k, v = torch.einsum("oc,bchw->bohw", module.qkv.weight[:, :, 0, 0], x).split(x.shape[1], dim=1)
    return depthwise(module.proj, depthwise(module.mix, gates(module.q_gates, q) + gates(module.k_gates, k)) * v)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_additive_mixer_computes_its_equations(dilation, size):
    torch.manual_seed(0)
    module = AdditiveTokenMixer(12, dilation).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight, part.bias, part.running_mean, part.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    x = torch.randn(2, 12, *size)
    ours = module(x)
    torch.testing.assert_close(ours.double(), additive_mixer_again(module, x), rtol=1e-5, atol=1e-6)


def efficient_modulation_again(module, x):
    """The layer's equations once more, in float64, with einops and windows cut out one by one."""
    module, x = module.double(), x.double()
    conv, gelu = module.context_conv, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2

    def project(layer, x):
        return torch.einsum("oc,bchw->bohw", layer.weight, x) + layer.bias[:, None, None]

    side, d = conv.kernel_size[0], conv.dilation[0]
    windows = nn.functional.unfold(project(module.context_in, x), side, d, padding=d * (side // 2))
    windows = einops.rearrange(windows, "b (c k) (h w) -> b c k h w", k=side * side, h=x.shape[2])
    mixed = torch.einsum("bckhw,ck->bchw", windows, conv.weight.flatten(1)) + conv.bias[:, None, None]
    context = project(module.context_out, gelu(mixed))
    hidden = project(module.fc1, x)
    hidden = hidden if module.expand_ratio == 1 else gelu(hidden)
    return project(module.fc2, hidden * einops.repeat(context, "b c h w -> b (r c) h w", r=module.expand_ratio))


@pytest.mark.parametrize("expand_ratio", [1, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_efficient_modulation_computes_its_equations(expand_ratio, dilation, size):
    torch.manual_seed(0)
    module = EfficientModulation(12, expand_ratio, 5, dilation).eval()
    x = torch.randn(2, 12, *size)
    ours = module(x)
    theirs = efficient_modulation_again(module, x)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def mobilevit_attention_again(module, x):
    """The block's equations once more, in float64, with einops; for maps that the patch divides."""
    module, x = module.double(), x.double()
    p = module.patch_size
    y = nn.functional.conv2d(
        x, module.conv_kxk.weight, module.conv_kxk.bias, padding=module.conv_kxk.kernel_size[0] // 2
    )
    y = torch.einsum("oc,bchw->bohw", module.conv_1x1.weight[:, :, 0, 0], y) + module.conv_1x1.bias[:, None, None]
    rows = y.shape[2] // p
    y = einops.rearrange(y, "b d (r i) (c j) -> b (i j) (r c) d", i=p, j=p)
    for block in module.transformer:
        h = block.attn.num_heads
        z = nn.functional.layer_norm(y, y.shape[-1:], block.norm1.weight, block.norm1.bias)
        q, k, v = einops.rearrange(z @ block.attn.qkv.weight.T, "b p n (three h d) -> three b p h n d", three=3, h=h)
        scores = torch.einsum("bphqd,bphkd->bphqk", q, k) / q.shape[-1] ** 0.5
        z = torch.einsum("bphqk,bphkd->bphqd", scores.softmax(-1), v)
        z = einops.rearrange(z, "b p h n d -> b p n (h d)")
        y = y + z @ block.attn.proj.weight.T + block.attn.proj.bias
        z = nn.functional.layer_norm(y, y.shape[-1:], block.norm2.weight, block.norm2.bias)
        z = z @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        y = y + (z * torch.sigmoid(z)) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    y = einops.rearrange(y, "b (i j) (r c) d -> b d (r i) (c j)", i=p, r=rows)
    y = torch.einsum("oc,bchw->bohw", module.conv_proj.weight[:, :, 0, 0], y) + module.conv_proj.bias[:, None, None]
    fusion = module.conv_fusion
    return nn.functional.conv2d(torch.cat([x, y], 1), fusion.weight, fusion.bias, padding=fusion.kernel_size[0] // 2)


@pytest.mark.parametrize(("patch_size", "size"), [(1, (5, 7)), (2, (8, 6)), (3, (9, 3)), (7, (14, 21))])
def test_mobilevit_attention_computes_its_equations(patch_size, size):
    torch.manual_seed(0)
    module = MobileViTAttention(12, 20, 5, patch_size, depth=2, mlp_dim=33, num_heads=3, head_dim=8).eval()
    x = torch.randn(2, 12, *size)
    ours = module(x)
    torch.testing.assert_close(ours.double(), mobilevit_attention_again(module, x), rtol=1e-5, atol=1e-6)


def test_mobilevit_attention_resizes_what_the_patch_does_not_divide():
    torch.manual_seed(0)
    module = MobileViTAttention(12, 20, 3, 4, depth=1, mlp_dim=33, num_heads=3, head_dim=8).eval()
    x = torch.randn(2, 12, 10, 13)
    tokens = []
    module.transformer.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    module(x)
    inner = nn.functional.interpolate(module.conv_1x1(module.conv_kxk(x)), (12, 16), mode="bilinear")
    expected = einops.rearrange(inner, "b d (r i) (c j) -> (b i j) (r c) d", i=4, j=4)
    torch.testing.assert_close(tokens[0], expected)


def test_mobilevit_attention_is_the_tutorials():
    path = Path(__file__).parent / "golden" / "modules" / "MobileViTAttention.safetensors"
    with safe_open(path, "pt") as recorded:
        config, theirs = json.loads(recorded.metadata()["config"]), recorded.get_tensor("output")
    sizes = [config[key] for key in ("in_channel", "dim", "kernel_size", "patch_size", "depth", "mlp_dim")]
    module = MobileViTAttention(*sizes, num_heads=config["heads"], head_dim=config["head_dim"]).eval()
    module.load_state_dict(mobilevit_wide.checkpoint_filter_fn(author_weights(path), module))
    x = torch.tensor(np.random.RandomState(0).standard_normal(config["input"]), dtype=torch.float32)
    error = ((module(x) - theirs).abs().max() / theirs.std()).item()
    print(f"MobileViTAttention: {error:.1e} of a standard deviation")
    assert error < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop_path": (0.1,)}, r"drop_path=\(0.1,\) must be one rate of at least 0 and below 1"),
        ({"drop_path": 1}, "drop_path=1 must be one rate"),
        ({"dim": 30}, "dim=30 must be a multiple of num_heads=4"),
        ({"dim": 0}, "dim=0 must be a whole number from 1"),
        ({"num_heads": 0}, "num_heads=0 must be a whole number from 1"),
        ({"sr_ratio": 2.0}, "sr_ratio=2.0 must be a whole number from 1"),
        ({"sr_ratio": 0}, "sr_ratio=0 must be a whole number from 1"),
        ({"dilation": 0}, "dilation=0 must be a whole number from 1"),
        ({"mlp_ratio": 0.01}, "mlp_ratio=0.01 leaves no hidden channel of dim=32"),
    ],
)
def test_local_global_local_attention_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalGlobalLocalAttention(**{"dim": 32, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": (1, 2, 4)}, r"num_heads=\(1, 2, 4\) needs 4 entries, one a stage"),
        ({"num_heads": (1, 2, 5, 8)}, "dim=144 must be a multiple of num_heads=5"),
        ({"depths": (1, 0, 3, 2)}, r"depths=\(1, 0, 3, 2\) needs whole numbers from 1"),
        ({"sr_ratios": 2}, "sr_ratios=2 needs 4 entries, one a stage"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 leaves no hidden channel of dim=36"),
        ({"attn_drop_rate": 1}, "attn_drop_rate=1 must be at least 0 and below 1"),
    ],
)
def test_edgevit_names_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("edgevit_xxs", **arguments)


def local_global_local_again(module, x, num_heads, sr_ratio):
    """The block's equations once more, in float64, cell by cell where it samples and propagates."""
    module, x = module.double(), x.double()

    def depthwise(conv, x):
        side = conv.weight.shape[2]
        return nn.functional.conv2d(x, conv.weight, conv.bias, padding=side // 2, groups=len(conv.weight))

    def project(layer, x):
        return torch.einsum("oc,bchw->bohw", layer.weight.flatten(1), x) + layer.bias[:, None, None]

    def norm(layer, x):
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = layer.running_mean[:, None, None], layer.running_var[:, None, None]
        else:
            mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
        return (x - mean) / (var + layer.eps) ** 0.5 * layer.weight[:, None, None] + layer.bias[:, None, None]

    def mlp(layer, x):
        hidden = project(layer.fc1, x)
        return project(layer.fc2, hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    def attend(layer, x):
        cells = [(i, j) for i in range(0, x.shape[2], sr_ratio) for j in range(0, x.shape[3], sr_ratio)]
        tokens = torch.stack([x[:, :, i, j] for i, j in cells], -1)[..., None]
        q, k, v = einops.rearrange(project(layer.qkv, tokens), "b (t h d) n 1 -> t b h n d", t=3, h=num_heads)
        attn = (torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        found = einops.rearrange(torch.einsum("bhqk,bhkd->bhqd", attn, v), "b h n d -> b (h d) n")
        told = torch.zeros_like(x)
        for n, (i, j) in enumerate(cells):
            for a in range(min(sr_ratio, x.shape[2] - i)):
                for b in range(min(sr_ratio, x.shape[3] - j)):
                    told[:, :, i + a, j + b] = found[..., n]
                    if sr_ratio > 1:
                        told[:, :, i + a, j + b] *= layer.propagate.weight[:, 0, a, b]
                        told[:, :, i + a, j + b] += layer.propagate.bias
        return project(layer.proj, norm(layer.norm, told) if sr_ratio > 1 else told)

    def aggregate(layer, x):
        return project(layer[2], depthwise(layer[1], project(layer[0], x)))

    halves = [(module.local_half, aggregate)] if sr_ratio > 1 else []
    for half, mix in [*halves, (module.global_half, attend)]:
        x = x + depthwise(half.pos_embed, x)
        x = x + mix(half.attn, norm(half.norm1, x))
        x = x + mlp(half.mlp, norm(half.norm2, x))
    return x


@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_local_global_local_attention_computes_its_equations(size, sr_ratio):
    torch.manual_seed(0)
    module = LocalGlobalLocalAttention(12, 3, sr_ratio, mlp_ratio=2.5).eval()
    for name, values in module.named_parameters():
        if "norm" in name:
            nn.init.uniform_(values, 0.5, 1.5)
    for name, values in module.named_buffers():
        if "running" in name:
            nn.init.uniform_(values, 0.5, 1.5)
    x = torch.randn(2, 12, *size)
    ours = module(x)
    with torch.no_grad():
        theirs = local_global_local_again(module, x, 3, sr_ratio)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_dilated_local_global_local_attention_keeps_its_cells(size, sr_ratio):
    plain, dilated = (create("LocalGlobalLocalAttention", sr_ratio=sr_ratio, dilation=d) for d in (1, 3))
    x = torch.randn(2, 32, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))
