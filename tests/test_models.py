"""What timm and its users ask of any model, for every name that the package registers."""

import copy
import importlib
import inspect
import io
import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath, freeze_batch_norm_2d
from timm.layers.format import Format, nhwc_to
from timm.models import group_parameters, save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from zoo import (
    EVERY_SIZE,
    NAMES,
    classifier_names,
    classifiers,
    close,
    create,
    declared,
    every_family,
    every_fixed,
    every_kind,
    every_name,
    family,
    image,
    outline,
    own_image,
    recorded_facts,
    sizes,
)

from timm_mobilevit_zoo.models._staged import StagedModel

REFUSALS = (AssertionError, RuntimeError, ValueError)  # what classes of timm's raise for images that they cannot take


def levels_of(backbone, x):
    """The backbone's maps, channels first."""
    last = backbone.output_fmt == Format.NHWC
    return [nhwc_to(level, Format.NCHW) if last else level for level in backbone(x)]


def the_same_levels(model, backbone, x):
    return model.forward_intermediates(x, backbone.feature_info.out_indices, intermediates_only=True)


# The registered model


@every_name
def test_class_is_ours_or_one_of_timms(name):
    model, module = outline(name), importlib.import_module(family(name))
    assert isinstance(model, StagedModel) or type(model).__module__.startswith("timm.")
    defined = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    assert isinstance(model, StagedModel) or not defined, "a new size of timm's class defines nothing"


def test_limits_name_tests():
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    of_timm = Path(__file__).with_name("host_tests.py").read_text(encoding="utf-8")
    for name in NAMES:
        for limit, reason in declared(name).items():
            test, _, model = limit.removesuffix("]").partition("[")
            assert f"def {test}(" in text or f'"{test}"' in of_timm
            assert not model or family(model) == family(name)
            assert reason


@every_name
def test_config_is_whole(name):
    model = outline(name)
    cfg, weights = model.pretrained_cfg, model.state_dict()
    assert f"{cfg['first_conv']}.weight" in weights
    assert all(f"{classifier}.weight" in weights for classifier in classifier_names(model))
    assert all(model.get_submodule(n) is m for n, m in zip(classifier_names(model), classifiers(model), strict=True))
    assert cfg["license"]
    assert cfg["paper_ids"]
    assert cfg["paper_name"]
    assert cfg["origin_url"]
    features = model.forward_features(torch.zeros(1, *cfg["input_size"], device="meta"))
    spatial = {3: None, 4: features.shape[1:3] if getattr(model, "output_fmt", "") == "NHWC" else features.shape[2:]}
    assert cfg["pool_size"] == spatial[features.ndim]  # None for tokens
    assert inspect.getdoc(timm.model_entrypoint(name))
    assert "/" in (cfg.get("hf_hub_id") or "/"), "a repository id is whole: timm completes none but its own"


@every_name
def test_the_first_layer_sees_the_image(name):
    model = create(name, in_chans=4, device="meta")
    first = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert next(module for module in model.modules() if not [*module.children()]) is first
    assert type(first) is nn.Conv2d
    assert first.in_channels == 4


@every_name
def test_convolutions_are_torchs(name):
    """Tools that count, prune or quantise look them up by their exact type."""
    convs = [m for m in outline(name).modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d))]
    assert convs
    assert {type(conv) for conv in convs} <= {nn.Conv2d, nn.ConvTranspose2d}


@every_name
def test_sizes_are_as_recorded(name):
    facts, model = recorded_facts(name), outline(name)
    assert sum(p.numel() for p in model.parameters()) == facts["params"]
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(facts["drop_path_rate"])


@every_name
def test_pretrained_without_published_weights_says_so(name):
    if timm.get_pretrained_cfg(name).has_weights:
        pytest.skip("weights are published")
    with pytest.raises(RuntimeError, match="nobody publishes such weights"):
        timm.create_model(name, pretrained=True)


# Classifier


@every_name
def test_a_network_that_can_be_distilled_says_so(name):
    model = outline(name)
    assert hasattr(model, "set_distilled_training") == (len(classifier_names(model)) == 2)


@every_family
def test_head(name):
    model, x = create(name, num_classes=7), own_image(name)
    features = model.forward_features(x)
    assert model.num_features == features.shape[-1 if features.ndim == 3 or hasattr(model, "output_fmt") else 1]
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, 7)
    assert torch.equal(model(x), model.forward_head(features))
    assert all(type(head) is nn.Linear and head.out_features == 7 for head in classifiers(model))


@every_family
def test_reset_classifier(name):
    model, x = create(name), own_image(name)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(x).shape == (2, 5)
    close(model.forward_head(model.forward_features(x), pre_logits=True), pooled)
    model.reset_classifier(0)
    close(model(x), pooled)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@every_family
def test_reset_classifier_without_pooling(name):
    model, x = create(name), own_image(name)
    model.reset_classifier(0, "")
    close(model(x), model.forward_features(x))


@every_family
def test_reset_classifier_keeps_type_mode_and_frozen_layers(name):
    model = create(name, dtype=torch.float64)
    model.train()
    first = next(child for child in model.children() if [*child.parameters()])
    first.eval().requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(4)
    for head in classifiers(model):
        assert head.weight.dtype == torch.float64
        assert head.training
    assert not any(module.training for module in first.modules())
    assert not any(parameter.requires_grad for parameter in first.parameters())


# Feature levels


@every_fixed
def test_what_cannot_be_dilated_says_so(name):
    with pytest.raises(ValueError, match=f"output_stride=16: {name}, on timm's \\w+, cannot be dilated"):
        create(name, output_stride=16)


@every_family
@pytest.mark.parametrize("feature_cls", [None, "getter"])
def test_backbone_is_forward_intermediates(name, feature_cls):
    model, x = create(name), own_image(name)
    backbone = create(name, features_only=True, feature_cls=feature_cls)
    levels, info = levels_of(backbone, x), backbone.feature_info
    assert len(levels) > 1
    for level, expected in zip(levels, the_same_levels(model, backbone, x), strict=True):
        close(level, expected)
    assert info.channels() == [level.shape[1] for level in levels]
    sides = [tuple(math.ceil(side / reduction) for side in x.shape[2:]) for reduction in info.reduction()]
    assert sides == [tuple(level.shape[2:]) for level in levels]


@every_family
@pytest.mark.parametrize("out_indices", [1, (0,), (-2, -1), (0, 2)])
def test_out_indices_of_any_backbone(name, out_indices):
    model, x = create(name, features_only=True, out_indices=out_indices), own_image(name)
    whole = create(name)
    levels = whole.forward_intermediates(x, intermediates_only=True)
    wanted = levels[-out_indices:] if isinstance(out_indices, int) else [levels[i] for i in out_indices]
    for level, expected in zip(levels_of(model, x), wanted, strict=True):
        close(level, expected)
    assert model.feature_info.channels() == [level.shape[1] for level in wanted]
    sum(level.sum() for level in model.train()(x)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None], "parameters that no level needs"


@every_family
def test_levels_that_there_are_not(name):
    with torch.device("meta"):
        count = len(timm.create_model(name).feature_info)
    for out_indices in ((count,), [0, -count - 1], count + 1, 0, ()):
        with pytest.raises(ValueError, match=f"{name} has {count} levels; choose from 0 to {count - 1}, or a number"):
            create(name, features_only=True, out_indices=out_indices)


@every_family
def test_backbone_returns_maps_with_channels_first(name):
    x = own_image(name)
    backbone = create(name, features_only=True)
    assert [level.shape[1] for level in backbone(x)] == backbone.feature_info.channels()


@every_family
@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook"])
def test_other_wrappers_return_maps_or_say_what_does(name, feature_cls):
    model, x = create(name), own_image(name)
    if model.forward_features(x).ndim == 3:
        with pytest.raises(ValueError, match=f"{feature_cls}: between its blocks {name} has tokens, not maps; omit it"):
            create(name, features_only=True, feature_cls=feature_cls)
        return
    backbone = create(name, features_only=True, feature_cls=feature_cls)
    levels = backbone(x)
    levels = list(levels.values()) if isinstance(levels, dict) else levels
    last = backbone.output_fmt == Format.NHWC
    levels = [nhwc_to(level, Format.NCHW) if last else level for level in levels]
    for level, expected in zip(levels, the_same_levels(model, backbone, x), strict=True):
        close(level, expected)


@every_family
def test_forward_intermediates(name):
    model, x = create(name), own_image(name)
    final, levels = model.forward_intermediates(x)
    close(final, model.forward_features(x))
    assert [level.shape[1] for level in levels] == [info["num_chs"] for info in model.feature_info]
    (kept,) = model.forward_intermediates(x, indices=[-2], stop_early=True, intermediates_only=True)
    assert torch.equal(kept, levels[-2])
    with pytest.raises((AssertionError, ValueError), match=r"(?i)output"):
        model.forward_intermediates(x, output_fmt="NWHC")


@every_family
def test_pruning(name):
    model, x = create(name), own_image(name)
    levels = model.forward_intermediates(x, intermediates_only=True)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([-2]) == [len(levels) - 2]
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.equal(pruned.forward_intermediates(x, [-1], intermediates_only=True)[0], levels[-2])
    kept = copy.deepcopy(model)
    kept.prune_intermediate_layers([-1], prune_head=False)
    assert torch.equal(kept(x), model(x))


# Images


@every_family
def test_empty_batch(name):
    assert create(name, num_classes=3)(own_image(name)[:0]).shape == (0, 3)


@every_family
def test_empty_batch_of_a_backbone(name):
    assert create(name, features_only=True)(own_image(name)[:0])[0].shape[0] == 0


@every_family
def test_images_of_a_batch_do_not_meet(name):
    model, x = create(name), own_image(name, batch=3)
    close(model(x), torch.cat([model(x[i : i + 1]) for i in range(3)]))


@every_family
@pytest.mark.parametrize("features_only", [False, True])
def test_images_of_other_channels_are_refused(name, features_only):
    with pytest.raises(REFUSALS):
        create(name, features_only=features_only)(own_image(name, chans=1))


@every_fixed
@pytest.mark.parametrize("features_only", [False, True])
def test_images_of_another_size_are_refused(name, features_only):
    height, width = sizes(name)[0]
    for size in ((2 * height, 2 * width), (height, 2 * width), (height // 2, width // 2)):
        with pytest.raises(REFUSALS):
            create(name, features_only=features_only)(image(*size))


@every_fixed
def test_another_size_is_an_argument(name):
    height, width = (2 * side for side in sizes(name)[0])
    x = image(height, width)
    assert create(name, img_size=(height, width), num_classes=3)(x).shape == (2, 3)
    backbone = create(name, img_size=height, features_only=True)
    sides = [(height // reduction, width // reduction) for reduction in backbone.feature_info.reduction()]
    assert [tuple(level.shape[2:]) for level in levels_of(backbone, x)] == sides


@every_fixed
def test_weights_follow_the_size(name, tmp_path):
    model, size = create(name), tuple(2 * side for side in sizes(name)[0])
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    larger = create(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=size)
    assert larger(image(*size)).shape == model(own_image(name)).shape
    ours, theirs = larger.state_dict(), model.state_dict()
    assert {key for key in ours if ours[key].shape != theirs[key].shape} <= {"pos_embed"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - {"pos_embed"})


@every_family
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model(name, not_an_argument=1)


# Devices, types, layouts, copies


@every_family
@pytest.mark.parametrize("features_only", [False, True])
def test_meta_device(name, features_only):
    with torch.device("meta"):
        inside = timm.create_model(name, features_only=features_only)
    for model in (inside, timm.create_model(name, device="meta", features_only=features_only)):
        tensors = [*model.parameters(), *model.buffers()]
        assert all(tensor.is_meta for tensor in tensors)
    assert torch.get_default_device().type == "cpu"


@every_family
def test_dtype(name):
    model, full, x = create(name, dtype=torch.bfloat16, num_classes=3), create(name, num_classes=3), own_image(name)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.load_state_dict(full.state_dict())  # timm draws other weights in another type
    logits, expected = model(x.bfloat16()), full(x)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    close(logits.float(), expected, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        close(full(x).float(), expected, 0.1)
    assert torch.get_default_dtype() == torch.float32


@every_family
def test_channels_last(name):
    model, x = create(name), own_image(name)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    close(model(x.to(memory_format=torch.channels_last)), expected)


@every_family
def test_copies(name):
    model, x = create(name), own_image(name)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    loaded = timm.create_model(name).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(x), expected)


@every_family
def test_saved_folder(name, tmp_path):
    model = create(name, num_classes=5, in_chans=1)
    model.pretrained_cfg["input_size"] = (1, *model.pretrained_cfg["input_size"][1:])  # timm 1.0.31 would see to it
    save_for_hf(model, tmp_path, safe_serialization=True)
    x = own_image(name, chans=1)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    backbone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    for level, expected in zip(levels_of(backbone, x), the_same_levels(model, backbone, x), strict=True):
        assert torch.equal(level, expected)


# Training


@every_family
def test_every_parameter_learns(name):
    model = create(name, num_classes=5, in_chans=1, drop_rate=0.1, drop_path_rate=0.1).train()
    torch.manual_seed(3)
    model(own_image(name, chans=1, batch=8)).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@every_family
def test_gradient_checkpointing_changes_nothing(name):
    runs = []
    for enable in (False, True):
        model = create(name, num_classes=5, drop_path_rate=0.2).train()
        model.set_grad_checkpointing(enable)
        assert enable in {getattr(module, "grad_checkpointing", None) for module in model.modules()}
        torch.manual_seed(3)
        logits = model(own_image(name))
        logits.square().mean().backward()
        runs.append((logits, [p.grad for p in model.parameters()], [b.clone() for b in model.buffers()]))
    for plain, checkpointed in zip(*runs, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-6)


@every_name
def test_layer_groups(name):
    model = outline(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups[f"{model.pretrained_cfg['first_conv']}.weight"] == 0
    assert all(groups[f"{n}.weight"] == max(groups.values()) for n in classifier_names(model))
    order = [groups[n] for n, _ in model.named_parameters()]
    assert order == sorted(order), "deeper layers are in later groups"
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert 2 < len(set(coarse.values())) <= len(set(groups.values()))
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert max(scales) == 1.0
    assert len(scales) == len(set(groups.values()))


@every_family
def test_frozen_batch_norm(name):
    model, x = create(name), own_image(name)
    expected = model(x)
    frozen = freeze_batch_norm_2d(model)
    close(frozen(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) and type(m) is not nn.BatchNorm2d for m in model.modules())


# Compilers and tracers


@every_kind
def test_torchscript(name):
    model = create(name)
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, own_image(name), check_trace=False)
    for size in sizes(name):
        x = image(*size)
        close(scripted(x), model(x))
        close(traced(x), model(x))


@every_kind
def test_torchscript_of_a_backbone(name):
    backbone, x = create(name, features_only=True), own_image(name)
    for level, expected in zip(torch.jit.script(backbone)(x), backbone(x), strict=True):
        close(level, expected)


@every_family
def test_fx(name):
    model = create(name)
    options = list(inspect.signature(model.forward).parameters.values())[1:]
    traced = torch.fx.symbolic_trace(model, concrete_args={option.name: option.default for option in options})
    for size in sizes(name):
        x = image(*size)
        close(traced(x), model(x))


@every_kind
@pytest.mark.parametrize("strict", [False, True] if EVERY_SIZE else [False])
def test_export(name, strict):
    model, x = create(name), own_image(name)
    fixed = torch.export.export(model, (x[:1],), strict=strict).module()
    close(fixed(x[:1]), model(x[:1]))
    shapes = {0: torch.export.Dim("b", max=16)}
    free = torch.export.export(model, (x,), dynamic_shapes=(shapes,), strict=strict).module()
    close(free(own_image(name, batch=3)), model(own_image(name, batch=3)))


@every_kind
def test_compile(name):
    model = create(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for size in reversed(sizes(name)):
            close(compiled(image(*size)), model(image(*size)))
