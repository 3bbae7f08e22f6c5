"""The authors' code and this one, number by number, on weights that no download brings."""

import importlib

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from zoo import GOLDEN, NAMES, author_weights, family, recorded_image

TOLERANCE = 1e-4  # of the recorded tensor's standard deviation


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return request.param


@pytest.fixture
def weights_file(golden, tmp_path):
    save_file(author_weights(golden), tmp_path / "authors.safetensors")
    return str(tmp_path / "authors.safetensors")


def create(golden, weights_file, **kwargs):
    return timm.create_model(
        golden.stem, pretrained=True, pretrained_cfg_overlay={"file": weights_file}, **kwargs
    ).eval()


def compare(path, key, ours):
    with safe_open(path, "pt") as recorded:
        theirs = recorded.get_tensor(key)
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.std()).item()
    print(f"{path.stem} {key}: {error:.1e} of a standard deviation")
    assert error < TOLERANCE


def keys(path):
    with safe_open(path, "pt") as recorded:
        return recorded.keys()


def test_every_family_has_a_recording():
    assert {family(path.stem) for path in GOLDEN} == set(map(family, NAMES))


def test_logits(golden, weights_file):
    model = create(golden, weights_file)
    sizes = [int(key.removeprefix("logits_")) for key in keys(golden) if key.startswith("logits_")]
    assert sizes
    for size in sizes:
        with torch.inference_mode():
            compare(golden, f"logits_{size}", model(recorded_image(size)))


def test_levels(golden, weights_file):
    levels = create(golden, weights_file, features_only=True)(recorded_image(64))
    for i, level in enumerate(levels):
        compare(golden, f"feature_64.{i}", level)


def test_input_gradient(golden, weights_file):
    x = recorded_image(64).requires_grad_()
    create(golden, weights_file)(x).square().mean().backward()
    compare(golden, "input_grad_64", x.grad)


def test_the_converter_maps_every_key_and_leaves_ours_alone(golden):
    model = timm.create_model(golden.stem)
    convert = importlib.import_module(family(golden.stem)).checkpoint_filter_fn
    theirs = author_weights(golden)
    ours = convert({"model": theirs}, model)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert {id(value) for value in ours.values()} == {id(value) for value in theirs.values()}
    again = convert(ours, model)
    assert list(again) == list(ours)
    assert all(again[key] is ours[key] for key in ours)


@pytest.mark.parametrize("num_classes", [1000, 10])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(golden, tmp_path, num_classes):
    weights = author_weights(golden)
    lost = next(key for key in weights if key.endswith(".bias") and "." in key.partition(".")[2])
    weights["stray.weight"] = weights.pop(lost)
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: .*; 1 unexpected: stray\.weight"):
        create(golden, str(tmp_path / "broken.safetensors"), num_classes=num_classes)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_weights_adapt_to_other_channels_and_classes(golden, weights_file, in_chans):
    full, adapted = create(golden, weights_file), create(golden, weights_file, in_chans=in_chans, num_classes=7)
    assert adapted(torch.rand(1, in_chans, 64, 64)).shape == (1, 7)
    first = full.pretrained_cfg["first_conv"] + ".weight"
    kept = [k for k in full.state_dict() if k != first and not k.startswith("head.")]
    assert all(torch.equal(full.state_dict()[k], adapted.state_dict()[k]) for k in kept)
