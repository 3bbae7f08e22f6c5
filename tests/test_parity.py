"""The authors' code and this one, number by number, on weights that no download brings."""

import importlib
import json
import re

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from zoo import (
    EVERY_SIZE,
    GOLDEN,
    NAMES,
    RECORDED,
    author_weights,
    classifier_names,
    every_staged_family,
    family,
    own_image,
    recorded_image,
)

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.maps import attention_maps
from timm_mobilevit_zoo.predict import weights_from

# Of the recorded tensor's standard deviation: how far one number may be off, and their root mean square. A LayerNorm's
# eps of 1e-5 for 1e-6 shows in logits at 9e-6. Maps of a few cells are less sharp: the recording of recnext_t's last
# one is itself 6e-6 from what its code gives in float64.
TOLERANCE = {"logits": (5e-6, 2e-6), "map": (1e-5, 3e-6), "attention": (3e-5, 1e-5), "gradient": (1e-4, 1e-5)}


def keys(path, prefix=""):
    with safe_open(path, "pt") as recorded:
        return [key for key in recorded.keys() if key.startswith(prefix)]  # noqa: SIM118, safe_open is no dict


def recordings(prefix=""):
    """Parametrise with the recordings that hold a tensor of this name: not each holds all."""
    return pytest.mark.parametrize(
        "golden", [path for path in GOLDEN if keys(path, prefix)], ids=lambda path: path.stem
    )


# What is the same for all sizes of a family: the smallest recording of each.
families = pytest.mark.parametrize("golden", RECORDED, ids=lambda path: path.stem)


@pytest.fixture
def weights_file(golden, tmp_path):
    save_file(author_weights(golden), tmp_path / "authors.safetensors")
    return str(tmp_path / "authors.safetensors")


def create(golden, weights_file, **kwargs):
    return timm.create_model(
        golden.stem, pretrained=True, pretrained_cfg_overlay={"file": weights_file}, **kwargs
    ).eval()


def compare(path, key, ours, kind):
    with safe_open(path, "pt") as recorded:
        theirs = recorded.get_tensor(key)
    assert ours.shape == theirs.shape
    off = (ours - theirs) / theirs.std()
    errors = off.abs().max().item(), off.square().mean().sqrt().item()
    print(f"{path.stem} {key}: {errors[0]:.1e} of a standard deviation, {errors[1]:.1e} in the mean")
    assert errors[0] < TOLERANCE[kind][0]
    assert errors[1] < TOLERANCE[kind][1]


def test_every_recording_is_of_a_model():
    assert {path.stem for path in GOLDEN} <= set(NAMES)


@every_staged_family
def test_a_family_has_a_recording(name):
    assert family(name) in {family(path.stem) for path in GOLDEN}


@recordings()
def test_every_recorded_tensor_is_compared(golden):
    assert keys(golden, "logits_")
    known = r"(fused_)?logits_\d+|logits_\d+x\d+|stem_64|feature_64\.\d|input_grad_64|attention\.\d+"
    assert all(re.fullmatch(known, key) for key in keys(golden))


@recordings("logits_")
def test_logits(golden, weights_file):
    model = create(golden, weights_file)
    for key in keys(golden, "logits_"):
        with torch.inference_mode():
            compare(golden, key, model(recorded_image(*map(int, key.removeprefix("logits_").split("x")))), "logits")


@recordings("feature_64")
def test_levels(golden, weights_file):
    wanted = len(keys(golden, "feature_64"))  # the last ones: the stem's map was not recorded
    levels = create(golden, weights_file, features_only=True, out_indices=wanted)(recorded_image(64))
    for i, level in enumerate(levels):
        compare(golden, f"feature_64.{i}", level, "map")


@recordings("stem_64")
def test_stem(golden, weights_file):
    (level,) = create(golden, weights_file, features_only=True, out_indices=(0,))(recorded_image(64))
    compare(golden, "stem_64", level, "map")


@recordings("fused_logits_")
def test_fused_logits_and_what_is_left_to_count(golden, weights_file):
    fused = fuse(create(golden, weights_file))
    for key in keys(golden, "fused_logits_"):
        with torch.inference_mode():
            compare(golden, key, fused(recorded_image(int(key.removeprefix("fused_logits_")))), "logits")
    with safe_open(golden, "pt") as recorded:
        count, layout = int(recorded.metadata()["params_fused"]), json.loads(recorded.metadata()["fused_state_dict"])
    for key in layout:
        if key.endswith("norm.running_mean"):  # their step leaves a norm: here it becomes its convolution's bias
            mixer = key.replace("norm.running_mean", "token_mixer.")
            has_bias = any(other.startswith(mixer) and other.endswith("bias") for other in layout)
            count -= (2 if has_bias else 1) * layout[key][0]
    assert sum(p.numel() for p in fused.parameters()) == count


@recordings("input_grad_64")
def test_input_gradient(golden, weights_file):
    x = recorded_image(64).requires_grad_()
    create(golden, weights_file)(x).square().mean().backward()
    compare(golden, "input_grad_64", x.grad, "gradient")


@recordings("attention.")
def test_attention_maps(golden, weights_file):
    size = int(keys(golden, "logits_")[0].removeprefix("logits_"))
    maps = attention_maps(create(golden, weights_file), recorded_image(size))
    assert len(maps) == len(keys(golden, "attention."))
    for i, attention in enumerate(maps.values()):
        compare(golden, f"attention.{i}", attention, "attention")


@recordings()
def test_the_converter_maps_every_key_and_leaves_ours_alone(golden):
    model = timm.create_model(golden.stem)
    convert = importlib.import_module(family(golden.stem)).checkpoint_filter_fn
    theirs = author_weights(golden)
    ours = convert({"model": theirs}, model)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    if len(ours) == len(theirs):  # pure renames
        assert {id(value) for value in ours.values()} == {id(value) for value in theirs.values()}
    else:  # some are joined: still the same numbers, and the recorded logits see to their order
        values = [torch.cat([v.double().flatten() for v in weights.values()]).sort()[0] for weights in (ours, theirs)]
        assert torch.equal(*values)
    again = convert(ours, model)
    assert list(again) == list(ours)
    assert all(again[key] is ours[key] for key in ours)


@families
@pytest.mark.parametrize("classes", [{}, {"num_classes": 7}], ids=["same head", "new head"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(golden, tmp_path, classes):
    weights = author_weights(golden)
    lost = next(key for key in weights if key.endswith(".bias") and "." in key.partition(".")[2])
    weights["stray.weight"] = weights.pop(lost)
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: .*; 1 unexpected: stray\.weight"):
        create(golden, str(tmp_path / "broken.safetensors"), **classes)


@families
@pytest.mark.parametrize("in_chans", [1, 4] if EVERY_SIZE else [4])
def test_weights_adapt_to_other_channels_and_classes(golden, weights_file, in_chans):
    full, adapted = create(golden, weights_file), create(golden, weights_file, in_chans=in_chans, num_classes=7)
    assert adapted(own_image(golden.stem, batch=1, chans=in_chans)).shape == (1, 7)
    first = full.pretrained_cfg["first_conv"] + ".weight"
    heads = tuple(f"{head}." for head in classifier_names(full))
    kept = [k for k in full.state_dict() if k != first and not k.startswith(heads)]
    assert all(torch.equal(full.state_dict()[k], adapted.state_dict()[k]) for k in kept)


@families
def test_a_head_of_other_classes_is_found_and_kept(golden, tmp_path):
    model = timm.create_model(golden.stem)
    theirs = author_weights(golden)
    ours = importlib.import_module(family(golden.stem)).checkpoint_filter_fn(dict(theirs), model)
    names = [key for key in model.state_dict() if key.rpartition(".")[0] in classifier_names(model)]
    heads = [key for key, value in theirs.items() if any(value is ours[name] for name in names)]
    assert len(heads) == len(names) > 0
    save_file(theirs | {key: theirs[key][:7].clone() for key in heads}, tmp_path / "seven.safetensors")
    overlay = weights_from(str(tmp_path / "seven.safetensors"), golden.stem)
    assert overlay["num_classes"] == 7
    seven = timm.create_model(golden.stem, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert torch.equal(seven.head.weight, ours["head.weight"][:7])


@families
def test_a_config_that_names_no_classifier(golden, weights_file):
    cfg = {"file": weights_file, "num_classes": timm.get_pretrained_cfg(golden.stem).num_classes}
    model = timm.create_model(golden.stem, pretrained=True, pretrained_cfg=cfg)
    assert torch.equal(model.head.weight, create(golden, weights_file).head.weight)
