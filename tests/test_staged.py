"""What `StagedModel` promises beyond timm's contract, for every name whose network is one."""

import copy
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from timm.models import FeatureListNet, group_parameters
from timm.models._features import FeatureGetterNet
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from zoo import (
    EVERY_SIZE,
    classifier_names,
    classifiers,
    close,
    create,
    every_staged,
    every_staged_family,
    every_staged_kind,
    image,
    logits_of_each,
    recorded_facts,
)

from timm_mobilevit_zoo.models._staged import Stage, StagedModel


def ceil_shapes(height, width, reductions):
    return [(math.ceil(height / r), math.ceil(width / r)) for r in reductions]


# The network


@every_staged
def test_stochastic_depth_begins_at_none(name):
    rates = [module.drop_prob for module in create(name, drop_path_rate=0.2).modules() if isinstance(module, DropPath)]
    assert min(rates) == 0
    assert max(rates) == pytest.approx(0.2)


def test_a_family_defines_its_constructor_and_nothing_else():
    def families(cls):
        for child in cls.__subclasses__():
            yield child
            yield from families(child)

    ours = [cls for cls in families(StagedModel) if cls.__module__.startswith("timm_mobilevit_zoo.")]
    assert ours
    for cls in ours:
        assert {key for key, value in vars(cls).items() if callable(value)} == {"__init__"}


# Classifier


@every_staged_family
def test_staged_head(name):
    model, x = create(name, num_classes=7), image()
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model(x), model.forward_head(features))
    assert dict(model.named_children())["head"] is model.head is classifiers(model)[0]
    assert all(type(head) is nn.Linear for head in classifiers(model))
    assert model.head.out_features == model(x).shape[1] == 7
    assert next(reversed(dict(model.named_children()))) == "head"


@every_staged_family
def test_staged_reset_classifier(name):
    model, x = create(name, global_pool="max"), image()
    features = model.forward_features(x)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    close(model.forward_head(features, pre_logits=True), features.amax((2, 3)))
    model.reset_classifier(5, "avg")
    close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    model.reset_classifier(5, "catavgmax")
    assert model(x).shape == (2, 5)
    assert model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    close(model(x), features)
    model.reset_classifier(3)  # keeps the absence of pooling: a map of logits
    logits = logits_of_each(model, features.permute(0, 2, 3, 1).flatten(0, 2))
    close(model(x).permute(0, 2, 3, 1).flatten(0, 2), sum(logits) / len(logits))
    with pytest.raises(ValueError, match="global_pool='median' is not one of"):
        model.reset_classifier(3, "median")


@every_staged_family
def test_a_new_classifier_is_drawn_as_the_first(name):
    """As the authors draw it, whether it comes with the network, in another's place, or where there was none."""
    std, model = recorded_facts(name).get("head_std"), create(name, num_classes=200)

    def check():
        for head in classifiers(model):
            bound = head.in_features**-0.5  # of torch's own uniform distribution
            assert head.weight.std().item() == pytest.approx(std or bound / 3**0.5, rel=0.03)
            assert std or bound * 0.99 < head.weight.abs().max() <= bound
            assert head.bias is None or bool(head.bias.any()) == (not std)

    check()
    for num_classes in (200, 0, 200):
        model.reset_classifier(num_classes)
        if num_classes:
            check()
    model = create(name, num_classes=0)
    model.reset_classifier(200, "catavgmax")
    check()


@every_staged_family
def test_distilled_training(name):
    model, x = create(name, num_classes=5), image()
    heads = classifiers(model)
    if len(heads) == 1:
        with pytest.raises(AttributeError, match="set_distilled_training"):
            model.set_distilled_training()
        return
    mean, pooled = model(x), model.forward_head(model.forward_features(x), pre_logits=True)
    model.set_distilled_training()
    assert torch.equal(model(x), mean), "evaluation takes the mean"
    model.training = True  # of the network alone: its layers stay as they were
    logits = model(x)
    assert len(logits) == 2
    assert not torch.allclose(*logits)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, logits_of_each(model, pooled), strict=True))
    model.set_distilled_training(False)
    assert torch.equal(model(x), mean)


# Feature levels


@every_staged_family
@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter"])
def test_feature_wrappers_agree(name, feature_cls):
    x = image(75, 101)
    reference = create(name).forward_intermediates(x, intermediates_only=True)
    model = create(name, features_only=True, feature_cls=feature_cls)
    levels = model(x)
    levels = list(levels.values()) if isinstance(levels, dict) else levels
    reductions = model.feature_info.reduction()
    assert reductions in ([2, 4, 8, 16, 32], [4, 8, 16, 32], [2, 8, 16, 32, 64])
    assert model.feature_info.channels() == [level.shape[1] for level in levels]
    assert [tuple(level.shape[2:]) for level in levels] == ceil_shapes(75, 101, reductions)
    for level, expected in zip(levels, reference, strict=True):
        close(level, expected)
    sum(level.sum() for level in levels).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None], "parameters that no level needs"


@every_staged_family
@pytest.mark.parametrize("out_indices", [3, (0,), (-3, -1), (2, 3)])
def test_out_indices(name, out_indices):
    model, x = create(name, features_only=True, out_indices=out_indices), image()
    whole = create(name)
    levels = whole.forward_intermediates(x, intermediates_only=True)
    wanted = levels[-out_indices:] if isinstance(out_indices, int) else [levels[i] for i in out_indices]
    for level, expected in zip(model(x), wanted, strict=True):
        close(level, expected)
    assert model.feature_info.channels() == [level.shape[1] for level in wanted]
    sum(level.sum() for level in model.train()(x)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None], "parameters that no level needs"


@every_staged
def test_levels_are_direct_children_in_order(name):
    model = create(name)
    children = [child for child, _ in model.named_children()]
    levels = [info["module"] for info in model.feature_info]
    assert [child for child in children if child in levels] == levels
    assert not any(isinstance(getattr(model, level), nn.Sequential) for level in levels)  # timm would flatten those
    wrapped = FeatureListNet(model, out_indices=tuple(range(len(levels))), flatten_sequential=True)
    assert list(wrapped.keys()) == children[: len(wrapped)]


@every_staged
def test_a_classifiers_weights_load_into_the_backbone(name):
    torch.manual_seed(1)
    classifier = timm.create_model(name).eval()
    backbone = create(name, features_only=True)
    missed = backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert not missed.missing_keys
    assert all(key.startswith(("norm.", "head")) for key in missed.unexpected_keys)
    levels = classifier.forward_intermediates(image(), intermediates_only=True)
    for level, expected in zip(backbone(image()), levels, strict=True):
        assert torch.equal(level, expected)


@every_staged_family
def test_staged_forward_intermediates(name):
    model, x = create(name), image()
    final, levels = model.forward_intermediates(x)
    close(final, model.forward_features(x))
    assert [level.shape[1] for level in levels] == [info["num_chs"] for info in model.feature_info]
    close(model.forward_intermediates(x, norm=True, intermediates_only=True)[-1], final)
    early, kept = model.forward_intermediates(x, indices=[-2], stop_early=True)
    assert torch.equal(early, kept[0])
    assert torch.equal(early, levels[-2])
    with pytest.raises(ValueError, match="output_fmt=NLC must be NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@every_staged_family
def test_staged_pruning(name):
    model, x = create(name), image()
    levels = model.forward_intermediates(x, intermediates_only=True)
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([-3, -2]) == [len(levels) - 3, len(levels) - 2]
    assert torch.equal(pruned.forward_features(x), levels[-2])
    assert pruned.num_features == pruned.head_hidden_size == levels[-2].shape[1]
    pruned.reset_classifier(6, "avg")
    assert pruned(x).shape == (2, 6)
    kept = copy.deepcopy(model)
    kept.prune_intermediate_layers([-1], prune_head=False)
    assert torch.equal(kept(x), model(x))


# Dilation


@every_staged_family
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride(name, output_stride):
    model, dilated = create(name), create(name, output_stride=output_stride)
    dilated.load_state_dict(model.state_dict())
    reductions = [min(info["reduction"], output_stride) for info in model.feature_info]
    assert [info["reduction"] for info in dilated.feature_info] == reductions
    backbone = create(name, features_only=True, output_stride=output_stride)
    assert backbone.feature_info.reduction() == reductions
    for size in ((64, 96), (75, 101)):
        x = image(*size)
        final, levels = dilated.forward_intermediates(x)
        assert [tuple(level.shape[2:]) for level in levels] == ceil_shapes(*size, reductions)
        assert tuple(final.shape[2:]) == ceil_shapes(*size, [output_stride])[0]
        assert dilated(x).shape == model(x).shape
        for level, expected in zip(backbone(x), levels, strict=True):
            close(level, expected)
    if reductions == [info["reduction"] for info in model.feature_info]:
        assert torch.equal(dilated(x), model(x))


@every_staged_family
def test_a_dilated_map_holds_the_cells_of_the_map(name):
    x = image(128, 128)
    levels = create(name).forward_intermediates(x, intermediates_only=True)
    for output_stride in (8, 16):
        dilated = create(name, output_stride=output_stride)
        for level, fine in zip(levels, dilated.forward_intermediates(x, intermediates_only=True), strict=True):
            step = fine.shape[2] // level.shape[2]
            close(fine[:, :, ::step, ::step], level, 1e-4)


@every_staged_family
@pytest.mark.parametrize("output_stride", [0, 4, 12, 64, "8", None, 16.5])
def test_another_output_stride_is_refused(name, output_stride):
    if output_stride is None:
        assert create(name, output_stride=None).feature_info == create(name).feature_info  # timm drops what is None
        return
    with pytest.raises(ValueError, match=f"output_stride={output_stride} must be one of 8, 16, 32"):
        create(name, output_stride=output_stride)


# Any image size


@every_staged_family
@pytest.mark.parametrize("features_only", [False, True])
def test_what_transformers_are_told_of_sizes_changes_nothing(name, features_only):
    """Some clients tell it to every name with `vit` in it."""
    told = dict(img_size=(224, 32), dynamic_img_size=True, dynamic_img_pad=True, strict_img_size=False)
    model = create(name, features_only=features_only, device="meta", **told)
    assert model.state_dict().keys() == create(name, features_only=features_only, device="meta").state_dict().keys()
    with pytest.raises(ValueError, match="img_size=0 must be a side in pixels"):
        create(name, img_size=0)


@every_staged_family
def test_any_image_size(name):
    model, backbone = create(name, num_classes=3), create(name, features_only=True)
    reductions = backbone.feature_info.reduction()
    tried = set()

    @settings(max_examples=25 if EVERY_SIZE else 12, deadline=None, derandomize=True, database=None)
    @given(st.integers(32, 300), st.integers(32, 300))
    def check(height, width):
        tried.add((height, width))
        x = image(height, width, batch=1)
        with torch.inference_mode():
            logits, levels = model(x), backbone(x)
            last = model.forward_features(x)
        assert logits.shape == (1, 3)
        assert torch.isfinite(logits).all()
        assert [tuple(level.shape[2:]) for level in levels] == ceil_shapes(height, width, reductions)
        assert tuple(last.shape[2:]) == ceil_shapes(height, width, reductions)[-1]
        assert all(torch.isfinite(level).all() for level in levels)

    check()
    print(f"{name}: {len(tried)} sizes")
    assert len(tried) >= (20 if EVERY_SIZE else 5)  # older hypothesis tries some twice


@every_staged_family
@pytest.mark.parametrize("size", [(4, 4), (5, 31), (37, 223), (224, 224), (256, 64)])
def test_border_sizes(name, size):
    logits = create(name, num_classes=3)(image(*size))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


# Wrong input


@every_staged_family
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_chans": 0}, "in_chans=0 must be at least 1"),
        ({"num_classes": -1}, "num_classes=-1 must be at least 0"),
        ({"global_pool": "median"}, "global_pool='median' is not one of"),
        ({"drop_rate": 1.0}, "drop_rate=1.0 must be at least 0 and below 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1 must be"),
        ({"in_chans": 3.0}, "in_chans=3.0 must be at least 1, a whole number"),
        ({"embed_dims": 48}, "embed_dims=48 needs 4 entries, one a stage"),
        ({"embed_dims": (48, 96, 192)}, r"embed_dims=\(48, 96, 192\) needs 4 entries, one a stage"),
        ({"embed_dims": (48, 0, 96, 192)}, r"embed_dims=\(48, 0, 96, 192\) needs whole numbers from 1 in each stage"),
        ({"embed_dims": (48.5, 96, 96, 96)}, r"embed_dims=\(48.5, 96, 96, 96\) needs whole numbers"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **arguments)


@every_staged_family
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 64, 64), "x has 1 channels; this model was built with in_chans=3"),
        ((2, 3, 3, 64), "x is 3 x 64 pixels; each side needs at least 4"),
        ((3, 64, 64), "x has 3 dimensions"),
    ],
)
def test_wrong_images_are_named(name, features_only, shape, message):
    with pytest.raises(ValueError, match=message):
        create(name, features_only=features_only)(torch.zeros(shape))


@every_staged_family
def test_dtype_keeps_the_initial_weights(name):
    typed, cast = create(name, dtype=torch.bfloat16).state_dict(), create(name).bfloat16().state_dict()
    assert all(torch.equal(typed[key], cast[key]) for key in cast)


# Training


@every_staged_family
def test_dropout_acts_wherever_the_authors_drop(name):
    wanted = recorded_facts(name).get("proj_drops")
    if wanted is None:  # nowhere
        with pytest.raises(TypeError, match="proj_drop_rate"):
            create(name, proj_drop_rate=0.3)
        return
    model, seen = create(name, proj_drop_rate=0.3).train(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.3:
            module.register_forward_hook(lambda module, args, out: seen.append((out == 0).sum() > (args[0] == 0).sum()))
    model(image(64, 64))
    assert len(seen) == wanted
    assert all(seen)
    assert torch.equal(create(name, proj_drop_rate=0.3)(image(64, 64)), create(name)(image(64, 64)))


@every_staged_family
def test_gradient_checkpointing_reaches_every_stage(name):
    model = create(name)
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        assert [m.grad_checkpointing for m in model.modules() if isinstance(m, Stage)] == 4 * [enable]


@every_staged_family
def test_staged_layer_groups(name):
    model = create(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert {groups[n] for n, _ in model.stem.named_parameters("stem")} == {0}
    assert groups["head.weight"] == max(groups.values())
    order = [groups[n] for n, _ in model.named_parameters()]
    assert order == sorted(order), "deeper layers are in later groups"
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    opened = sum(bool(len(stage.blocks)) for stage in model.modules() if isinstance(stage, Stage))
    assert len(set(coarse.values())) == 2 + opened  # stem, head, stages that are more than what opens the first
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert max(scales) == 1.0
    assert len(scales) > 6


# Compilers and tracers


@every_staged_kind
def test_staged_torchscript(name):
    model, x = create(name), image(75, 101)
    scripted = torch.jit.script(model)
    close(scripted(x), model(x))
    close(torch.jit.trace(model, x, check_trace=False)(image(64, 64)), model(image(64, 64)))
    for features in (create(name, features_only=True), FeatureGetterNet(create(name), out_indices=(0, 1, 2))):
        for level, expected in zip(torch.jit.script(features)(x), features(x), strict=True):
            close(level, expected)
    with pytest.raises(torch.jit.Error, match="x has 1 channels"):
        scripted(image(chans=1))


@every_staged_kind
def test_staged_fx(name):
    model, x = create(name), image(75, 101)
    traced = torch.fx.symbolic_trace(model)
    close(traced(x), model(x))
    close(traced(image(64, 40)), model(image(64, 40)))
    close(torch.jit.script(traced)(x), model(x))
    names = classifier_names(model)  # the logits are their mean
    extractor = create_feature_extractor(model, {"stage2": "level"} | {name: name for name in names})
    close(sum(extractor(x)[name] for name in names) / len(names), model(x))


@every_staged_kind
@pytest.mark.parametrize("strict", [False, True] if EVERY_SIZE else [False])
def test_staged_export(name, strict):
    model = create(name)
    shapes, sizes = {0: torch.export.Dim("b", max=16)}, [(75, 101)]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15):  # torch 2.8 still guards the sizes it pools
        shapes |= {2: torch.export.Dim("h", min=65), 3: torch.export.Dim("w", min=65)}
        sizes += [(65, 65), (224, 130)]
    free = torch.export.export(model, (image(75, 101),), dynamic_shapes=(shapes,), strict=strict).module()
    for size in sizes:
        close(free(image(*size, batch=3)), model(image(*size, batch=3)))
