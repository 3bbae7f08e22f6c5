"""`fuse`: the same outputs without the norms, and nothing folded that must not be."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from zoo import create, every_family, every_kind, every_staged_family, own_image

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.fusion import prepack
from timm_mobilevit_zoo.models.probe import seed_weights

THEIRS = {"resnet18": 0, "mobilenetv3_small_050": 0, "ghostnetv2_100": 0, "starnet_s1": 1, "mobilenetv4_conv_small": 0}


def norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def seeded(name):
    """With statistics and scales that are not those of a new network, which would hide a mistake."""
    return seed_weights(create(name))


def error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def fed_by_a_layer(model, x):
    """Names of norms whose input is, in this very run, what a convolution or a linear layer returned."""
    made, found = {}, []

    def keep(module, args, out):
        made[id(out)] = out

    def look(name):
        def hook(module, args):
            if id(args[0]) in made:
                found.append(name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            module.register_forward_hook(keep)
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(look(name))
    model(x)
    return found


@every_family
@torch.no_grad()
def test_outputs_and_levels_are_equal(name):
    model, x = seeded(name), own_image(name)
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert type(fused) is type(model)
    assert not any(module.training for module in fused.modules())
    assert error(fused(x), model(x)) < 1e-5
    levels = [network.forward_intermediates(x, intermediates_only=True) for network in (fused, model)]
    assert all(error(ours, theirs) < 1e-5 for ours, theirs in zip(*levels, strict=True))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(norms(fused)) < len(norms(model)) or not norms(model)
    assert fed_by_a_layer(copy.deepcopy(fused), x) == []


@every_staged_family
@torch.no_grad()
def test_a_backbone(name):
    backbone, x = create(name, features_only=True), own_image(name)
    backbone.load_state_dict(seeded(name).state_dict(), strict=False)
    fused = fuse(backbone)
    assert len(norms(fused)) < len(norms(backbone)) or not norms(backbone)
    assert fused.feature_info.channels() == backbone.feature_info.channels()
    for ours, theirs in zip(fused(x), backbone(x), strict=True):
        assert error(ours, theirs) < 1e-5


@every_kind
@torch.no_grad()
def test_what_it_returns_compiles_and_fuses_again(name):
    model, x = seeded(name), own_image(name)
    fused = fuse(model)
    assert error(torch.jit.script(fused)(x), model(x)) < 1e-5
    assert error(fuse(fused)(x), model(x)) < 1e-5
    assert fused.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_timms_models(name):
    model, x = seeded(name), torch.rand(2, 3, 96, 64)
    fused = fuse(model)
    assert len(norms(fused)) == THEIRS[name] < len(norms(model))
    assert fed_by_a_layer(copy.deepcopy(model), x)
    assert fed_by_a_layer(copy.deepcopy(fused), x) == []
    assert error(fused(x), model(x)) < 1e-5


def small(*layers):
    return seed_weights(nn.Sequential(*layers)).eval()


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(6)),
        lambda: (nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6)),
        lambda: (nn.Conv2d(4, 6, 1), nn.Dropout(0.5), nn.BatchNorm2d(6, affine=False)),
        lambda: (nn.Conv2d(4, 6, 1), timm.layers.BatchNormAct2d(6, act_layer=nn.SiLU)),
        lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), timm.layers.LayerScale2d(6, 0.3)),
        lambda: (nn.Linear(8, 5), timm.layers.LayerScale(5, 0.3)),
        lambda: (nn.Identity(), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 6, 3))),
        lambda: (nn.Identity(), nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 1, bias=False))),
    ],
    ids=["grouped", "transposed", "dropout", "with its activation", "norm and scale", "linear", "in front", "plain"],
)
@torch.no_grad()
def test_folds(layers):
    model, x = small(*layers()), torch.randn(2, 4, 9, 8)
    fused = fuse(model)
    assert not norms(fused)
    assert not [module for module in fused.modules() if type(module).__name__.startswith("LayerScale")]
    assert error(fused(x), model(x)) < 1e-5


class Twice(nn.Module):
    """A convolution whose result two see, or that runs twice, in front of a norm."""

    def __init__(self, runs):
        super().__init__()
        self.conv, self.norm, self.runs = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), runs

    def forward(self, x):
        y = self.conv(self.conv(x) if self.runs == 2 else x)
        return self.norm(y) + (0 if self.runs == 2 else y)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (Twice(1),),
        lambda: (Twice(2),),
        lambda: (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        lambda: (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)),
        lambda: (nn.Conv2d(4, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)),
        lambda: (nn.Identity(), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))),
        lambda: (nn.Identity(), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, groups=2))),
        lambda: (nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, 6, 1))),
        lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1)),
    ],
    ids=["two see", "twice", "groups", "statistics", "between", "padded", "grouped", "level", "children of the model"],
)
@torch.no_grad()
def test_leaves_alone(layers):
    model, x = small(*layers()), torch.randn(2, 4, 9, 8)
    fused = fuse(model)
    assert len(norms(fused)) == 1
    assert error(fused(x), model(x)) < 1e-6


class ChannelsFirst(nn.Module):
    """A layer, its last dimension moved to where a map has its channels, and what comes behind."""

    def __init__(self, layer, rest):
        super().__init__()
        self.layer, self.rest = layer, rest

    def forward(self, x):
        return self.rest(self.layer(x).permute(0, 3, 1, 2))


class Optional(nn.Module):
    """What computes something more where its second argument is left out."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x, mask=None):
        x = self.conv(x)
        return self.norm(x.relu() if mask is None else x)


class ReadsWeight(nn.Module):
    """What uses a convolution's weight beside the convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum()


def hooked():
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_hook(lambda module, args, out: out.relu())
    return conv, nn.BatchNorm2d(4)


# Where a layer's channels are is not where the norm or the scale has them. All sides are equal: nothing else shows it.
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Linear(4, 4), nn.BatchNorm2d(4)),
        lambda: (nn.Flatten(2), nn.Linear(16, 4), nn.BatchNorm1d(4)),
        lambda: (nn.Conv2d(4, 4, 1), timm.layers.LayerScale(4, 0.3)),
        lambda: (nn.Linear(4, 4), timm.layers.LayerScale2d(4, 0.3)),
        lambda: (ChannelsFirst(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),),
        lambda: (ChannelsFirst(nn.Linear(4, 4), timm.layers.LayerScale(4, 0.3)),),
        lambda: (ReadsWeight(),),
        hooked,
    ],
    ids=[
        "rows",
        "tokens",
        "columns",
        "scaled rows",
        "moved convolution",
        "moved linear",
        "read",
        "hook",
    ],
)
@torch.no_grad()
def test_equal_where_nothing_may_be_folded(layers):
    model, x = small(*layers()), torch.randn(2, 4, 4, 4)
    fused = fuse(model)
    assert [type(module) for module in fused.modules()] == [type(module) for module in model.modules()]
    assert error(fused(x), model(x)) < 1e-6


@torch.no_grad()
def test_an_argument_left_out_is_left_out_of_the_trace():
    model, x = seed_weights(Optional()).eval(), torch.randn(2, 4, 4, 4)
    fused = fuse(model)
    assert len(norms(fused)) == 1
    assert error(fused(x), model(x)) < 1e-6


@pytest.mark.parametrize("rest", [nn.BatchNorm2d, timm.layers.LayerScale2d])
@torch.no_grad()
def test_a_linear_layer_whose_channels_are_moved(rest):
    model, x = small(ChannelsFirst(nn.Linear(4, 5), rest(5))), torch.randn(2, 4, 4, 4)
    fused = fuse(model)
    assert type(fused[0].rest) is nn.Identity
    assert error(fused(x), model(x)) < 1e-5


@torch.no_grad()
def test_an_old_weight_norm_stays():
    model, x = small(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 4, 9, 8)
    nn.utils.weight_norm(model[0])
    assert error(fuse(model)(x), model(x)) < 1e-6


@pytest.mark.parametrize("before", [False, True])
@torch.no_grad()
def test_a_norm_of_another_type(before):
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    model, x = small(nn.Sequential(norm, conv) if before else nn.Sequential(conv, norm)), torch.randn(2, 4, 9, 8)
    conv.bfloat16()
    fused = fuse(model)
    assert not norms(fused)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    assert error(fused(x.bfloat16()), model(x.bfloat16())) < 0.02


@every_family
@torch.no_grad()
def test_memory_format_is_kept(name):
    fused = fuse(create(name).to(memory_format=torch.channels_last))
    maps = [parameter for parameter in fused.parameters() if parameter.dim() == 4]
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in maps)


@torch.no_grad()
def test_tied_weights_stay_apart():
    model = small(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].weight = model[0].weight
    x = torch.randn(2, 4, 9, 8)
    assert error(fuse(model)(x), model(x)) < 1e-6


def packed(model):
    return [module for module in model.modules() if type(module).__module__.endswith(".prepack")]


@every_family
@torch.no_grad()
def test_prepacked_outputs_and_levels_are_equal(name):
    model, x = seeded(name), own_image(name)
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, prepack=True)
    assert type(fused) is type(model)
    assert packed(fused)
    assert not [m for m in fused.modules() if type(m) is nn.Conv2d], "every convolution"
    assert error(fused(x), model(x)) < 1e-5
    levels = [network.forward_intermediates(x, intermediates_only=True) for network in (fused, model)]
    assert all(error(ours, theirs) < 1e-5 for ours, theirs in zip(*levels, strict=True))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not fused(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_prepacked_models_of_timms(name):
    model, x = seeded(name), torch.rand(2, 3, 96, 64)
    assert error(fuse(model, prepack=True)(x), model(x)) < 1e-5


PACKED_ACTS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), nn.Sigmoid, nn.Tanh, nn.Hardswish]


@pytest.mark.parametrize("act", PACKED_ACTS)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(4, 4, 1),
        lambda: nn.Conv2d(4, 4, (3, 2), 2, 1, (1, 2), groups=2, bias=False),
        lambda: nn.Linear(8, 4),
        lambda: nn.Linear(8, 4, bias=False),
    ],
    ids=["1x1", "grouped", "linear", "no bias"],
)
@torch.no_grad()
def test_activations_are_packed(layer, act):
    model, x = small(nn.Sequential(layer(), nn.Dropout(0.5), act())), 9 * torch.randn(2, 4, 9, 8)
    fused = fuse(model, prepack=True)
    assert [type(module) for module in fused[0][1:]] == [nn.Identity if i else nn.Dropout for i in range(2)]
    assert error(fused(x), model(x)) < 1e-5


def shared_act():
    act = nn.ReLU()
    return nn.Sequential(nn.Conv2d(4, 4, 1), act, nn.Conv2d(4, 4, 1), act)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (shared_act(),),
        lambda: (nn.Conv2d(4, 4, 1), nn.ReLU()),
        lambda: (nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Sequential(nn.ReLU())),
        lambda: (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softplus()),),
    ],
    ids=["shared", "children of the model", "level", "another activation"],
)
@torch.no_grad()
def test_activations_stay(layers):
    model, x = small(*layers()), torch.randn(2, 4, 9, 8)
    fused = fuse(model, prepack=True)
    assert packed(fused)
    assert not [module for module in fused.modules() if type(module) is nn.Identity]
    assert error(fused(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),),
        lambda: (nn.Conv2d(4, 4, 3, padding="same"),),
        lambda: (nn.ConvTranspose2d(4, 4, 3),),
        lambda: hooked()[:1],
    ],
    ids=["reflect", "same", "transposed", "hook"],
)
@torch.no_grad()
def test_layers_that_are_not_packed(layers):
    model, x = small(*layers()), torch.randn(2, 4, 9, 8)
    fused = fuse(model, prepack=True)
    assert not packed(fused)
    assert error(fused(x), model(x)) < 1e-6


@torch.no_grad()
def test_a_convolution_s_weights_are_laid_out_for_each_size():
    plain = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()).eval()
    fast = fuse(plain, prepack=True)
    sizes = [torch.Size((batch, 16, side, side + 1)) for batch in (1, 2) for side in (7, 14, 28)]
    for size in [*sizes, *sizes]:
        x = torch.randn(size)
        with torch.inference_mode(mode=size[0] == 2):
            assert (fast(x) - plain(x)).abs().max() < 1e-5
    assert list(fast[0].laid_out) == sizes[-prepack.SIZES :]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: small(nn.Conv2d(4, 4, 1)).double(),
            "prepack=True is for float32 on a CPU, and 0.weight is float64 on",
        ),
        (lambda: nn.Conv2d(4, 4, 1, device="meta").eval(), "weight is float32 on meta: call model.float"),
    ],
)
def test_what_cannot_be_prepacked(model, message):
    with pytest.raises(ValueError, match=message):
        fuse(model(), prepack=True)


def test_prepacking_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="prepack=True needs a torch with oneDNN"):
        fuse(small(nn.Conv2d(4, 4, 1)), prepack=True)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"model is in training mode \(ResNet is\): call model.eval\(\) first"),
        (lambda: nn.Sequential(nn.ReLU().train()).eval().append(nn.ReLU()), r"training mode \(1 is\)"),
        (lambda: torch.jit.script(small(nn.ReLU())), "fuse first, then compile or script"),
        (lambda: torch.compile(small(nn.ReLU())), "fuse first, then compile or script"),
        (lambda: Branches().eval(), "model=Branches cannot be traced by torch.fx: "),
    ],
)
def test_refusals(model, message):
    with pytest.raises(ValueError, match=message):
        fuse(model())
