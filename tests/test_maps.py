"""Attention maps: the numbers, the places on the image, the picture, the command; and a model left as it was found."""

import functools
import math
import re
import socket

import einops
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import Attention
from timm.models import save_for_hf
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from timm.models.swin_transformer import SwinTransformerBlock
from timm.utils import AttentionExtract
from torch import nn
from torch.nn import functional as F  # noqa: N812
from zoo import EVERY_SIZE, FIRST, FIXED, KINDS, NAMES, every_name, image, limits, sizes

from timm_mobilevit_zoo.attention import CloAttention
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.common import extras
from timm_mobilevit_zoo.maps import attention_maps, draw, draw_file, drawing, places, rollout
from timm_mobilevit_zoo.maps.panels import _rolled, panels_of, rolled_out
from timm_mobilevit_zoo.maps.places import locate, received
from timm_mobilevit_zoo.maps.recording import Layer, _is_map, record
from timm_mobilevit_zoo.models._pooled import PooledAttention
from timm_mobilevit_zoo.models.edgevit import SparseAttention
from timm_mobilevit_zoo.models.efficientmod import MapAttention
from timm_mobilevit_zoo.models.loading import load_checkpoint

# timm's networks, small images whose sides differ: Swin's need padding, MobileViT's are no multiple of its patches.
THEIRS = {
    "vit_tiny_patch16_224": (48, 64),
    "deit_tiny_distilled_patch16_224": (48, 64),
    "swin_tiny_patch4_window7_224": (100, 68),
    "mobilevit_xxs": (100, 68),
    "mobilevitv2_050": (100, 68),
}
OURS = [name for name in NAMES if "test_a_network_has_maps" not in limits(name)]
FIRST_OURS = [name for name in FIRST if name in OURS]


def has_softmax(name):
    """Whether there is more to see than gates, which timm has no name for."""
    with torch.device("meta"):
        return any(key.endswith(".attn_drop") for key, _ in timm.create_model(name).named_modules())


every_network = pytest.mark.parametrize("name", [*OURS, *THEIRS])
every_other = pytest.mark.parametrize("name", [name for name in NAMES if name not in OURS])


def build(name, **kwargs):
    if name in THEIRS and timm.get_pretrained_cfg(name).fixed_input_size:
        kwargs = {"img_size": THEIRS[name]} | kwargs
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for key, weight in model.named_parameters():  # fresh weights attend to everything alike
        if re.search(r"\.(qkv|q|kv|qkv_proj|gate\.\d)\.weight$", key):
            nn.init.normal_(weight, std=3 * weight[0].numel() ** -0.5)
    return model


@functools.cache
def built(name):
    """A model, an input and its maps, for tests that change nothing."""
    model, x = build(name), image(*(sizes(name)[0] if name in FIXED else THEIRS.get(name, (70, 99))))
    return model, x, attention_maps(model, x)


def attentions(model):
    """Names and modules whose map is to be found, in the order of their registration."""
    return {
        f"{name}.gate" if hasattr(module, "gate_drop") else name: module
        for name, module in model.named_modules()
        if hasattr(module, "attn_drop") or hasattr(module, "gate_drop")
    }


# The numbers


def linear(layer, x):
    return F.linear(x, layer.weight.double(), None if layer.bias is None else layer.bias.double())


def conv(layer, x):
    return F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=layer.padding, groups=layer.groups)


def softmax(q, k, bias=0.0):
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5 + bias
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def of_tokens(module, x, mask=None):
    q, k, _ = einops.rearrange(linear(module.qkv, x), "b n (three h d) -> three b h n d", three=3, h=module.num_heads)
    if not hasattr(module, "relative_position_bias_table"):
        return softmax(q, k)
    bias = einops.rearrange(module.relative_position_bias_table[module.relative_position_index], "q k h -> h q k")
    if mask is not None:
        bias = bias + einops.repeat(mask, "w q k -> (b w) 1 q k", b=len(x) // len(mask))
    return softmax(q, k, bias)


def of_pooled(module, x):
    side = getattr(module.pool, "window_size", 1)
    rows, columns = (range(0, size, side) for size in x.shape[2:])
    cells = torch.stack([x[:, :, i : i + side, j : j + side].mean((2, 3)) for i in rows for j in columns], -1)
    q = einops.rearrange(conv(module.q, x), "b (h d) y x -> b h (y x) d", h=module.num_heads)
    kv = conv(module.kv, cells[..., None])
    return softmax(q, einops.rearrange(kv, "b (two h d) n 1 -> two b h n d", two=2, h=module.num_heads)[0])


def of_sparse(module, x):
    q, k, _ = linear(module.qkv, x).chunk(3, -1)
    asks, window = module.query_step, module.query_step * module.key_step
    q, k = q[:, ::asks, ::asks], k[:, ::window, ::window]
    return softmax(*(einops.rearrange(part, "b y x (h d) -> b h (y x) d", h=module.num_heads) for part in (q, k)))


def of_gate(module, x):
    q, k, _ = conv(module.mix, conv(module.qkv, x)).chunk(3, 1)
    hidden = conv(module.gate[0], q * k)
    return torch.tanh(conv(module.gate[2], hidden * torch.sigmoid(hidden)) * module.gate[3].scale)


def of_separable(module, x):
    return conv(getattr(module, "qkv_proj", None) or module.qkv, x)[:, :1].softmax(-1)


def of_map(module, x):
    q, k, _ = linear(module.qkv, x.movedim(1, 3)).chunk(3, -1)
    d = module.head_dim
    q = einops.rearrange(q, "b y x (h d) -> b h (y x) d", d=d)
    return softmax(q, einops.rearrange(k[:, :: module.dilation, :: module.dilation], "b y x (h d) -> b h (y x) d", d=d))


FORMULAS = {
    "Attention": of_tokens,
    "MapAttention": of_map,
    "WindowAttention": of_tokens,
    "PooledAttention": of_pooled,
    "SparseAttention": of_sparse,
    "AttnConv": of_gate,
    "LinearSelfAttention": of_separable,
    "SeparableAttention": of_separable,
}


@every_name
def test_a_network_has_maps(name):
    assert built(name)[2]


@every_network
def test_maps_are_what_the_layers_compute(name):
    model, x, found = built(name)
    modules, inputs, handles = attentions(model), {}, []
    for key, module in modules.items():
        hook = functools.partial(lambda key, _, args, kwargs: inputs.update({key: (args, kwargs)}), key)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.no_grad():
        model(x)  # with the fused kernels, which do not show their maps
    for handle in handles:
        handle.remove()
    assert list(found) == list(inputs), "one map for each attention, in order of execution"
    assert len(found) == len(modules)
    with torch.no_grad():
        for key, (args, kwargs) in inputs.items():
            formula = FORMULAS.get(type(modules[key]).__name__)
            assert formula, f"write down above how {type(modules[key]).__name__} computes its map"
            masks = [mask for mask in kwargs.values() if mask is not None]  # of Swin's shifted windows
            expected = formula(modules[key], args[0].double(), *masks)
            torch.testing.assert_close(found[key].double(), expected, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: k + m)


@every_network
def test_rows_are_distributions_and_gates_are_bounded(name):
    _, _, found = built(name)
    for key, values in found.items():
        assert values.dim() == 4
        assert not values.requires_grad
        if key.endswith(".gate"):
            assert values.min() >= -1
            assert values.max() <= 1
            assert values.min() < 0
            assert values.shape[0] == 2
        else:
            assert values.min() >= 0
            torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:3]), rtol=1e-5, atol=1e-5)


@every_other
def test_a_network_without_attention_says_so(name):
    with pytest.raises(ValueError, match="has no attention that timm's convention shows"):
        attention_maps(build(name), image())


def test_shapes_of_the_leading_dimensions():
    shapes = {name: next(iter(built(name)[2].values())).shape for name in THEIRS}
    assert shapes == {
        "vit_tiny_patch16_224": (2, 3, 13, 13),  # 3 x 4 patches and the class token
        "deit_tiny_distilled_patch16_224": (2, 3, 14, 14),
        "swin_tiny_patch4_window7_224": (2 * 4 * 3, 3, 49, 49),  # ceil(25 / 7) x ceil(17 / 7) windows
        "mobilevit_xxs": (2 * 4, 4, 7 * 5, 7 * 5),  # 13 x 9 cells
        "mobilevitv2_050": (2, 1, 4, 7 * 5),
    }


@pytest.mark.parametrize("method", ["fx", "hook"])
@pytest.mark.parametrize("name", [name for name in OURS if has_softmax(name) and (EVERY_SIZE or name in KINDS)])
def test_timms_attention_extract_finds_the_same_maps_under_its_default_names(name, method):
    _, x, found = built(name)
    model = build(name)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.no_grad():
        theirs = AttentionExtract(model, method=method)(x)
    ending = ".softmax" if method == "fx" else ".attn_drop"
    ours = {key + ending: values for key, values in found.items() if not key.endswith(".gate")}
    assert theirs.keys() == ours.keys()
    for key, values in ours.items():
        torch.testing.assert_close(theirs[key], values)


@pytest.mark.parametrize("name", [*FIRST_OURS, "vit_tiny_patch16_224", "mobilevit_xxs"])
def test_backbones_have_the_same_maps(name):
    model, x, found = built(name)
    backbone = build(name, features_only=True)
    inner = backbone.model if hasattr(backbone, "model") else backbone
    weights = {re.sub(r"^(stages|layers)\.", r"\1_", key): value for key, value in model.state_dict().items()}
    weights = weights if type(inner).__name__ == "FeatureListNet" else model.state_dict()
    inner.load_state_dict({key: value for key, value in weights.items() if key in inner.state_dict()})
    theirs = attention_maps(backbone, x)
    assert [re.sub(r"^(stages|layers)_", r"\1.", key.removeprefix("model.")) for key in theirs] == list(found)
    for ours, other in zip(found.values(), theirs.values(), strict=True):
        torch.testing.assert_close(other, ours)


def test_what_passes_through_the_dropout_and_is_no_distribution_is_left_out():
    model = timm.create_model("cait_xxs24_224", depth=2, img_size=32)  # mixes heads between softmax and dropout
    found = attention_maps(model, image(32, 32))
    assert list(found) == ["blocks_token_only.0.attn", "blocks_token_only.1.attn"]
    assert all(values.shape == (2, 4, 1, 5) for values in found.values())

    def is_map(values, is_gate=False):
        return _is_map(Layer(values, is_gate, None, ()))

    half = torch.full((1, 1, 2, 2), 0.5)
    assert is_map(half)
    assert is_map((half * 1.01).bfloat16())
    assert not is_map(half * 1.01)
    assert not is_map(torch.tensor([[[[1.5, -0.5]]]]))
    assert not is_map(half[0])
    assert not is_map(half[None])
    assert is_map(-2 * half, is_gate=True)
    assert not is_map(-2.1 * half, is_gate=True)


def test_lower_precision():
    model, x = build("vit_tiny_patch16_224").bfloat16(), image(48, 64).bfloat16()
    found = attention_maps(model, x)
    assert len(found) == 12
    assert all(values.dtype == torch.bfloat16 for values in found.values())
    assert rollout(model, x).dtype == torch.float32
    draw(model, x[:1])


# The model is left as it was found


def state_of(model):
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    fused = [getattr(m, "fused_attn", None) for m in model.modules()]
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    return [m.training for m in model.modules()], hooks, fused, tensors


def same_state(a, b):
    return a[:3] == b[:3] and all(torch.equal(a[3][key], b[3][key]) for key in a[3])


@pytest.mark.parametrize("name", [FIRST_OURS[0], "swin_tiny_patch4_window7_224"])
def test_modes_switches_and_hooks_are_restored(name):
    model, x, found = built(name)
    model = build(name, attn_drop_rate=0.5, drop_path_rate=0.5)
    model.load_state_dict(built(name)[0].state_dict())
    chosen = np.random.RandomState(0)
    for module in model.modules():
        module.training = bool(chosen.randint(2))
        if hasattr(module, "fused_attn"):
            module.fused_attn = bool(chosen.randint(2))
    seen = []
    last = [module for module in model.modules() if hasattr(module, "attn_drop")][-1]
    last.attn_drop.register_forward_pre_hook(lambda *_: seen.append("pre"))
    last.register_forward_hook(lambda *_: seen.append("post"))
    before = state_of(model)
    assert {True, False} <= set(before[0])
    assert {True, False} <= set(before[2])

    again = attention_maps(model, x)
    assert same_state(state_of(model), before)
    assert seen == ["pre", "post"]
    for key, values in found.items():  # the call itself ran in eval mode
        torch.testing.assert_close(again[key], values)

    class StopError(Exception):
        pass

    def fail(*_):
        raise StopError

    handle = last.proj.register_forward_pre_hook(fail) if hasattr(last, "proj") else last.register_forward_hook(fail)
    before = state_of(model)
    with pytest.raises(StopError):
        attention_maps(model, x)
    assert same_state(state_of(model), before)
    handle.remove()


class Twice(nn.Module):
    """One attention, used two times, behind a layout that nobody knows."""

    def __init__(self):
        super().__init__()
        self.attn = Attention(8, num_heads=2)

    def forward(self, x):
        return self.attn(self.attn(x.flatten(2).mT))


def test_a_module_that_runs_again_loses_no_map():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(1, 8, 3, 2)
    nn.init.normal_(model.attn.qkv.weight)
    found = attention_maps(model, x)
    assert list(found) == ["attn", "attn:2"]
    with torch.no_grad():
        tokens = x.flatten(2).mT
        for key, before in (("attn", tokens), ("attn:2", model.attn(tokens))):
            torch.testing.assert_close(found[key], of_tokens(model.attn, before.double()).float())


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        functools.partial(torch.compile, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
)
def test_wrapped_models(wrap):
    torch.manual_seed(0)
    model, x = CloAttention(8).eval(), torch.randn(1, 8, 9, 9)
    expected = attention_maps(model, x)
    wrapped = wrap(model)
    with torch.no_grad():
        wrapped(x)
    found = attention_maps(wrapped, x)
    assert list(found) == ["local.gate", "pooled_attn"] == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_models_compiled_in_place():
    model, x = CloAttention(8).eval(), torch.randn(1, 8, 9, 9)
    model.compile(backend="eager")
    with torch.no_grad():
        model(x)
    assert list(attention_maps(model, x)) == ["local.gate", "pooled_attn"]


def test_refusals():
    x = image(64, 64)
    with pytest.raises(ValueError, match=r"ResNet has no attention that timm's convention shows.*CloFormer, ViT"):
        attention_maps(timm.create_model("resnet18"), x)
    model = CloAttention(8)
    with pytest.raises(ValueError, match=r"x=\(8, 9, 9\) must be a batch of images"):
        attention_maps(model, torch.rand(8, 9, 9))
    with pytest.raises(ValueError, match="x=list must be a batch of images"):
        attention_maps(model, [torch.rand(8, 9, 9)])
    with pytest.raises(ValueError, match=r"local\.gate is not finite"):
        attention_maps(model, torch.full((1, 8, 9, 9), math.nan))
    for call in (attention_maps, rollout, draw):
        with pytest.raises(ValueError, match="TorchScript"):
            call(torch.jit.script(model), torch.rand(1, 8, 9, 9))


# Roll-out


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_rollout_against_loops(name, prefix):
    model, x, found = built(name)
    ours = rollout(model, x)
    assert ours.shape == (2, 3, 4)
    for picture in range(2):
        shares = np.eye(12 + prefix)
        for attn in found.values():
            heads = attn[picture].double().numpy()
            mixed = np.zeros_like(shares)
            for q in range(len(shares)):
                for k in range(len(shares)):
                    mixed[q, k] = sum(head[q, k] for head in heads) / len(heads) / 2 + (q == k) / 2
                mixed[q] /= mixed[q].sum()
            shares = np.array([[sum(row * shares[:, k]) for k in range(len(shares))] for row in mixed])
        assert shares[0].sum() == pytest.approx(1)
        np.testing.assert_allclose(ours[picture].flatten(), shares[0, prefix:], rtol=1e-4)
        assert ours[picture].sum().item() == pytest.approx(1 - shares[0, :prefix].sum(), rel=1e-4)


def test_rollout_mends_rows_that_low_precision_left_uneven():
    rough = [1.04 * torch.rand(1, 2, 5, 5).softmax(-1) for _ in range(20)]
    torch.testing.assert_close(_rolled(rough).sum(-1), torch.ones(1, 5))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "depths": (1, 1, 1, 1)}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "class_token": False, "global_pool": "avg"}),
        ("cait_xxs24_224", {"img_size": 32, "depth": 1}),
        (FIRST_OURS[0], {}),
    ],
)
def test_rollout_needs_a_class_token_and_whole_maps(name, kwargs):
    model = timm.create_model(name, **kwargs)
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no roll-out"):
        rollout(model, image(32, 32))


def test_rollout_refuses_maps_of_other_queries():
    model, x, _ = built("vit_tiny_patch16_224")
    layers = record(model, x)
    assert rolled_out(model, x, layers) is not None
    few = layers["blocks.3.attn"]
    layers["blocks.3.attn"] = few._replace(values=few.values[:, :, :1])
    assert rolled_out(model, x, layers) is None


# Places. Layers that attend to wherever the first of their channels is bright, and to nothing else.


def stare(module):
    with torch.no_grad():
        for layer in (module.qkv,) if hasattr(module, "qkv") else (module.q, module.kv):
            layer.weight.zero_()
            layer.bias.zero_()
        if hasattr(module, "qkv"):
            width = len(module.qkv.weight) // 3
            module.qkv.bias[:width] = 1
            module.qkv.weight[width : 2 * width, 0] = 1e4
        else:
            module.q.bias.fill_(1)
            module.kv.weight[: len(module.kv.weight) // 2, 0] = 1e4
    return module


def bright(i, j, size, channels=8):
    x = torch.zeros(1, channels, *size)
    x[0, 0, i, j] = 1
    return x


def seen_by(network, x):
    """What `draw` would show of a network's only layer."""
    (layer,) = record(network, x).values()
    located = locate(layer, None, len(x))
    assert located is not None
    return received(*located, len(x))[0]


def only(i, j, size, value=1.0):
    expected = torch.zeros(size)
    expected[i, j] = value
    return expected


@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (1, 3)])
@pytest.mark.parametrize("size", [(8, 12), (10, 13)])
def test_swin_windows_are_put_back(size, shift):
    block = SwinTransformerBlock(8, size, num_heads=2, window_size=4, always_partition=True).eval()
    block.shift_size, block.dynamic_mask, block.norm1 = shift, True, nn.Identity()
    stare(block.attn)
    for i in range(size[0]):
        for j in range(size[1]):
            seen = seen_by(block, bright(i, j, size).permute(0, 2, 3, 1))
            assert seen[i, j] == pytest.approx(1, abs=1e-3)
            window = seen < 1e-3  # the keys that share its window get nothing
            rows = [k for k in range(size[0]) if (k - shift[0]) % size[0] // 4 == (i - shift[0]) % size[0] // 4]
            columns = [k for k in range(size[1]) if (k - shift[1]) % size[1] // 4 == (j - shift[1]) % size[1] // 4]
            assert window.sum() == len(rows) * len(columns) - 1
            assert window[rows][:, columns].sum() == len(rows) * len(columns) - 1


def test_queries_of_padding_do_not_count():
    block = SwinTransformerBlock(8, (5, 5), num_heads=2, window_size=4, always_partition=True).eval()
    layer = next(iter(record(block, torch.rand(1, 5, 5, 8)).values()))
    corner = torch.zeros(4, 2, 16, 16)
    corner[..., 1] = 1  # every query looks at its window's second key,
    corner[3, :, 0] = torch.eye(16)[0]  # but in the last window the only cell of the map looks at itself
    seen = received(*locate(layer._replace(values=corner), None, 1), 1)[0]
    assert torch.equal(seen, only([0, 4, 4], [1, 1, 4], (5, 5)))


@pytest.mark.parametrize("patch", [2, (2, 3)])
def test_mobilevit_patches_are_folded_back(patch):
    h, w = timm.layers.to_2tuple(patch)
    size = (3 * h, 5 * w)
    block = MobileVitBlock(8, transformer_dim=8, transformer_depth=1, patch_size=patch, num_heads=2).eval()
    block.conv_kxk, block.conv_1x1, block.transformer[0].norm1 = nn.Identity(), nn.Identity(), nn.Identity()
    stare(block.transformer[0].attn)
    second = MobileVitV2Block(8, transformer_dim=8, transformer_depth=1, patch_size=patch).eval()
    second.conv_kxk, second.conv_1x1, second.transformer[0].norm1 = nn.Identity(), nn.Identity(), nn.Identity()
    with torch.no_grad():
        scores = second.transformer[0].attn.qkv_proj
        scores.weight[0], scores.bias[0] = 0, 0
        scores.weight[0, 0] = 1e4
    for i in range(size[0]):
        for j in range(size[1]):
            elsewhere = torch.full(size, 1 / 15)  # other in-patch positions see nothing bright in their 15 patches
            elsewhere[i % h :: h, j % w :: w] = 0
            for network in (block, second):
                seen = seen_by(network, bright(i, j, size))
                torch.testing.assert_close(seen, elsewhere + only(i, j, size))


class Folded(nn.Module):
    """MobileViT's layout in other hands: one number for the patch, and padding where timm resizes."""

    def __init__(self, patch_size):
        super().__init__()
        self.patch_size = patch_size
        self.transformer = nn.Sequential(nn.ModuleDict({"attn": stare(Attention(8, num_heads=2, qkv_bias=True))}))

    def forward(self, x):
        p = self.patch_size
        x = F.pad(x, (0, -x.shape[3] % p, 0, -x.shape[2] % p))
        return self.transformer[0]["attn"](einops.rearrange(x, "b c (y p) (x q) -> (b p q) (y x) c", p=p, q=p))


def test_blocks_of_another_maker():
    for i in range(5):
        for j in range(7):
            seen = seen_by(Folded(3), bright(i, j, (5, 7)))
            assert seen.shape == (6, 9)
            assert seen[i, j] == 1
            torch.testing.assert_close(seen[i % 3 :: 3, j % 3 :: 3].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 4), (6, 9), (3, 5)])
def test_pooled_keys_cover_their_windows(size, window):
    layer = stare(PooledAttention(8, 8, 4, window, 0.0, None, None)).eval()
    for i in range(size[0]):
        for j in range(size[1]):
            seen = seen_by(layer, bright(i, j, size))
            expected = torch.zeros(size)
            top, left = i // window * window, j // window * window
            expected[top : top + window, left : left + window] = 1
            torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 4), (6, 9), (3, 5)])
def test_sampled_keys_stand_for_their_windows(size, sr_ratio, dilation):
    layer = stare(SparseAttention(8, 2, sr_ratio, dilation, 0.0, 0.0, {})).eval()
    window = sr_ratio * dilation
    for i in range(0, size[0], window):
        for j in range(0, size[1], window):
            seen = seen_by(layer, bright(i, j, size).movedim(1, 3))
            expected = torch.zeros(size)
            expected[i : i + window, j : j + window] = 1
            torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(8, 4), (6, 9), (3, 5)])
def test_a_dilated_maps_keys_are_the_cells_that_it_kept(size, dilation):
    layer = MapAttention(8, dilation, 0.0, 0.0).eval()
    layer.qkv = nn.Linear(8, len(layer.qkv.weight))  # with a bias, so that queries can be alike
    stare(layer)
    for i in range(0, size[0], dilation):
        for j in range(0, size[1], dilation):
            seen = seen_by(layer, bright(i, j, size))
            expected = torch.zeros(size)
            expected[i : i + dilation, j : j + dilation] = 1
            torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize("class_token", [True, False])
def test_vit_patches_lie_on_the_grid(class_token):
    kwargs = {} if class_token else {"class_token": False, "reg_tokens": 2, "global_pool": "avg"}
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 64), depth=1, **kwargs).eval()
    model.blocks[0].norm1 = nn.Identity()
    stare(model.blocks[0].attn)
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.proj.weight[0] = 1e-3
        for token in (model.pos_embed, model.cls_token, model.reg_token):
            if token is not None:
                token.zero_()
    for i in range(3):
        for j in range(4):
            x = F.interpolate(bright(i, j, (3, 4), channels=1), scale_factor=16).repeat(1, 3, 1, 1)
            found = panels_of(model, x, record(model, x))
            torch.testing.assert_close(found[0].values, only(i, j, (3, 4)))
            if class_token:
                torch.testing.assert_close(found[1].values, only(i, j, (3, 4), 0.5))
                torch.testing.assert_close(found[1].values, rollout(model, x)[0])
            assert [panel.kind for panel in found] == (["class", "roll-out"] if class_token else ["received"])


@pytest.mark.parametrize("name", THEIRS)
def test_layouts_that_do_not_fit_are_not_guessed(name):
    model, x, _ = built(name)
    vit = places.find_vit(model, x)
    layer = next(iter(record(model, x).values()))
    assert locate(layer, vit, 2) is not None
    assert locate(layer._replace(values=layer.values[..., 1:]), vit, 2) is None
    assert locate(layer._replace(values=layer.values[1:]), vit, 2) is None
    assert layer.frame is None or locate(layer._replace(shape=()), vit, 2) is None


# The picture


def shown(axis):
    return [np.asarray(drawn.get_array()) for drawn in axis.images]


def panels_and_bars(figure):
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    return [axis for axis in figure.axes if axis.images and axis not in bars], bars


@pytest.mark.parametrize("name", FIRST_OURS)
def test_the_picture_shows_each_layers_numbers(name):
    model, x, _ = built(name)
    height, width = x.shape[2:]
    picture = image(height, width, batch=1)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (picture - mean) / std
    (first, *axes), bars = panels_and_bars(draw(model, x, all_layers=True))
    np.testing.assert_allclose(shown(first)[0], picture[0].permute(1, 2, 0), atol=1e-6)
    found = {key: values for key, values in attention_maps(model, x).items() if values.shape[-1] > 1 or "gate" in key}
    has_class_token = getattr(model, "cls_token", None) is not None
    assert [axis.get_title() for axis in axes] == [*found, *["roll-out"] * has_class_token]
    assert len(bars) == len(axes)
    assert all(label.get_text() for bar in bars for label in bar.get_yticklabels())
    for axis, (key, values) in zip(axes, found.items(), strict=False):
        grey, drawn = shown(axis)
        np.testing.assert_allclose(grey, picture[0].mean(0), atol=1e-6)
        assert all(tuple(part.get_extent()) == (0, width, height, 0) for part in axis.images)
        limits = axis.images[1].get_clim()
        if key.endswith(".gate"):
            np.testing.assert_allclose(drawn, values[0].mean(0), rtol=1e-5)
            assert limits == (-np.abs(drawn).max(), np.abs(drawn).max())
        else:
            np.testing.assert_allclose(limits, (min(drawn.min(), 0.99 * drawn.max()), drawn.max()))
        if key.endswith("pooled_attn"):
            module = model.get_submodule(key)
            side = getattr(module.pool, "window_size", 1)
            stride = next(i["reduction"] for i in model.feature_info if i["module"] == key.partition(".")[0])
            H, W = math.ceil(height / stride), math.ceil(width / stride)
            keys = values[0].mean((0, 1)).view(math.ceil(H / side), math.ceil(W / side))
            cells = [[float(keys[i // side, j // side]) for j in range(W)] for i in range(H)]
            np.testing.assert_allclose(drawn, cells, rtol=1e-5)


@pytest.mark.parametrize("name", THEIRS)
def test_the_picture_of_timms_networks(name):
    model, x, found = built(name)
    (_, *axes), _ = panels_and_bars(draw(model, x[:1], all_layers=True))
    has_class_token = name.startswith(("vit", "deit"))
    assert [axis.get_title() for axis in axes] == [*found, "roll-out"] if has_class_token else list(found)
    if has_class_token:
        prefix = model.num_prefix_tokens
        for axis, values in zip(axes, found.values(), strict=False):
            np.testing.assert_allclose(shown(axis)[1].flatten(), values[0].mean(0)[0, prefix:], rtol=1e-4)
        np.testing.assert_allclose(shown(axes[-1])[1], rollout(model, x)[0], rtol=1e-4)
    else:
        sides = {"swin": (25, 17), "mobi": (14, 10)}[name[:4]]
        assert shown(axes[0])[1].shape == sides
        assert len({axis.images[1].get_clim() for axis in axes}) > 1, "each panel has a scale of its own"


def test_unknown_layouts_are_drawn_as_matrices():
    model, x = Twice(), torch.randn(1, 8, 3, 2)
    figure = draw(model, x)
    (_, *axes), _ = panels_and_bars(figure)
    for axis, values in zip(axes, attention_maps(model, x).values(), strict=True):
        (drawn,) = shown(axis)  # and no image below
        np.testing.assert_allclose(drawn, values.mean((0, 1)), rtol=1e-5)
    assert "rows of queries" in figure.get_suptitle()


def test_a_picture_has_one_image():
    with pytest.raises(ValueError, match="x has 2 images; a figure shows one"):
        draw(CloAttention(3, 1, (0, 1)), image(8, 8))


def test_a_missing_matplotlib_names_the_pip_command(monkeypatch, tmp_path):
    def not_installed(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(extras.importlib, "import_module", not_installed)
    monkeypatch.setattr(drawing, "load", lambda *_, **__: pytest.fail("work had begun"))
    for call in (
        lambda: draw(CloAttention(3, 1, (0, 1)), image(8, 8, batch=1)),
        lambda: draw_file(FIRST_OURS[0], "picture.png", output=str(tmp_path / "maps.png")),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[viz\]'"):
            call()


# The command


MODEL = FIRST_OURS[0]


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["maps", *map(str, args)])
    return stopped.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def weights():
    return build(MODEL, num_classes=2).state_dict()


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """A model as `train` leaves it."""
    path = tmp_path_factory.mktemp("model")
    model = timm.create_model(MODEL, num_classes=2, pretrained_cfg_overlay={"input_size": (3, 48, 48)})
    model.load_state_dict(weights)
    save_for_hf(model, path, model_config={"label_names": ["cat", "dog"]}, safe_serialization=True)
    return path


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_command_on_a_folder(capsys, folder, picture, tmp_path):
    out = tmp_path / "maps.png"
    code, said, _ = call(capsys, folder, picture, "-o", out)
    assert code == 0
    transform = timm.data.create_transform(input_size=(3, 48, 48), crop_pct=0.875, interpolation="bicubic")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    with Image.open(picture) as pixels:
        found = attention_maps(model, transform(pixels)[None])
    lines = [f"{key}: {tuple(values.shape)}" for key, values in found.items()]
    shown = f"7 of {len(found)} maps are shown, those on which a person sees most; --all-layers draws the others"
    assert said.splitlines() == [*lines, shown, f"drew {out}"]
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        assert drawn.size[0] > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.png", "picture.png"]


def test_command_takes_the_weights_it_is_given(capsys, folder, weights, picture, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []

    def keep(network, x, layers, logits, every, note):
        drawn.append((layers, note))
        return drawing.Figure(Figure(), [])

    monkeypatch.setattr(drawing, "_figure", keep)
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    options = {"output": str(tmp_path / "maps.png"), "overwrite": True}
    draw_file(str(folder), str(picture), **options)
    draw_file(f"local-dir:{folder}", str(picture), **options)
    draw_file(MODEL, str(picture), checkpoint=str(tmp_path / "weights.pth"), img_size=48, **options)
    assert "random" not in capsys.readouterr().out
    draw_file(MODEL, str(picture), img_size=48, **options)
    assert f"the weights of {MODEL} are random" in capsys.readouterr().out
    assert [note for _, note in drawn] == [*[""] * 3, f"random weights: {MODEL}"]
    first, *others, fresh = [layers for layers, _ in drawn]
    for key, layer in first.items():
        assert all(torch.equal(layer.values, other[key].values) for other in others)
        assert not torch.equal(layer.values, fresh[key].values)


def test_a_checkpoint_tells_its_number_of_classes(tmp_path):
    name = "deit_tiny_distilled_patch16_224"  # its config names two classifiers
    weights = timm.create_model(name, num_classes=2).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = load_checkpoint(str(tmp_path / "weights.pth"), name)
    assert model.num_classes == 2
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_command_downloads_only_when_asked(capsys, picture, tmp_path, monkeypatch):
    def no_network(*args):
        raise OSError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    name, out = "vit_tiny_patch16_224", tmp_path / "maps.svg"
    code, said, _ = call(capsys, name, picture, "-o", out, "--img-size", 48)
    assert code == 0
    assert said.splitlines()[:2] == [
        f"the weights of {name} are random, and so are these maps",
        "blocks.0.attn: (1, 3, 10, 10)",
    ]
    assert b"<svg" in out.read_bytes()[:1000]

    asked, model = [], built(name)[0]
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: asked.append((args, kwargs)) or model)
    call(capsys, name, picture, "-o", out, "--pretrained", "--overwrite")
    assert asked == [((name,), {"pretrained": True})]


def test_command_on_grey_images(capsys, picture, tmp_path):
    overlay = {"input_size": (1, 32, 32), "mean": (0.25,), "std": (0.5,)}
    model = timm.create_model(MODEL, in_chans=1, pretrained_cfg_overlay=overlay)
    save_for_hf(model, tmp_path / "grey", safe_serialization=True)
    assert call(capsys, tmp_path / "grey", picture, "-o", tmp_path / "maps.png")[0] == 0


def test_nothing_is_overwritten_unasked_or_broken(capsys, folder, picture, tmp_path, monkeypatch):
    out = tmp_path / "maps.png"
    out.write_bytes(b"mine")
    code, _, err = call(capsys, folder, picture, "-o", out)
    assert code == 2
    assert err == f"timm-mobilevit-zoo: error: --output {out} exists; choose another, or give --overwrite\n"
    assert out.read_bytes() == b"mine"

    from matplotlib.figure import Figure

    def half(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", half)
        code, _, err = call(capsys, folder, picture, "-o", out, "--overwrite")
    assert (code, err) == (2, "timm-mobilevit-zoo: error: the disk is full\n")
    assert out.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.png", "picture.png"]

    assert call(capsys, folder, picture, "-o", out, "--overwrite")[0] == 0
    with Image.open(out) as drawn:
        assert drawn.size[0] > 1000


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"output": "{tmp}/maps"}, ValueError, r"output='.*maps' must end in one of .*\.png"),
        ({"output": "{tmp}/maps.docx"}, ValueError, r"output='.*maps\.docx' must end in one of .*\.png"),
        (
            {"output": "{tmp}/none/maps.png"},
            FileNotFoundError,
            "output=.* needs a folder that exists; '.*none' does not",
        ),
        ({"output": "{tmp}/folder.png", "overwrite": True}, ValueError, "output=.*folder.png' exists; choose another$"),
        ({"image": "{tmp}/none.png"}, FileNotFoundError, "image='.*none.png' is not a file"),
        ({"checkpoint": "{tmp}/none.pth"}, FileNotFoundError, "checkpoint='.*none.pth' is not a file"),
        (
            {"checkpoint": "{picture}", "pretrained": True},
            ValueError,
            "checkpoint=.* cannot be given beside a folder's or",
        ),
        (
            {"checkpoint": "{picture}", "model": "{folder}"},
            ValueError,
            "checkpoint=.* cannot be given beside a folder's or",
        ),
        ({"img_size": 0}, ValueError, "img_size=0 must be a side"),
        (
            {"model": "hf-hub:someone/something"},
            ValueError,
            "model='hf-hub:.*' has weights elsewhere; `pretrained=True`",
        ),
    ],
)
def test_arguments_are_checked_before_the_work(changes, error, message, folder, picture, tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(drawing, "load", lambda *_, **__: pytest.fail("work had begun"))
    arguments = {"model": MODEL, "image": str(picture), "output": str(tmp_path / "maps.png")} | changes
    for name, value in arguments.items():
        if isinstance(value, str):
            arguments[name] = value.format(tmp=tmp_path, picture=picture, folder=folder)
    with pytest.raises(error, match=message):
        draw_file(**arguments)
    assert not (tmp_path / "maps.png").exists()


def test_command_errors_are_one_line(capsys, picture, tmp_path):
    out = tmp_path / "maps.png"
    for args, message in (
        (("no_such_model", picture), "'no_such_model' is neither a folder nor a model of timm's"),
        ((tmp_path, picture), "is not a folder with config.json and weights"),
        (("resnet18", picture, "--img-size", 32), "ResNet has no attention that timm's convention shows"),
        ((MODEL, __file__), "cannot be read: UnidentifiedImageError"),
    ):
        code, _, err = call(capsys, *args, "-o", out)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    assert not out.exists()
    code, said, _ = call(capsys, "--help")
    assert all(option in said for option in ("--output", "--pretrained", "--checkpoint", "--img-size", "--overwrite"))
