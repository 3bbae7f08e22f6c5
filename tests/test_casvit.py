"""What the authors' training script leaves: a checkpoint with one classifier, where their network has two."""

import pytest
import timm
import torch
from zoo import GOLDEN, author_weights, close, image

NAME = "casvit_xs"
BOTH = author_weights(next(path for path in GOLDEN if path.stem == NAME))
ONE = {key: value for key, value in BOTH.items() if not key.startswith("dist_head.")}


def load(weights, folder, **kwargs):
    torch.save({"model": weights, "epoch": 299}, folder / "checkpoint.pth")
    overlay = {"file": str(folder / "checkpoint.pth")}
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def test_one_classifier_serves_as_both(tmp_path):
    model, reference, x = load(ONE, tmp_path), load(BOTH, tmp_path), image()
    assert len(BOTH) == len(ONE) + 2
    assert torch.equal(model.head_dist.weight, BOTH["head.weight"])
    expected = reference.head(reference.forward_head(reference.forward_features(x), pre_logits=True))
    close(model(x), expected)
    assert not torch.allclose(reference(x), expected)


def test_one_classifier_of_other_classes_is_replaced(tmp_path):
    model = load(ONE, tmp_path, num_classes=7)
    assert model(image()).shape == (2, 7)
    assert torch.equal(model.stage4.blocks[1].mlp.fc2.weight, BOTH["network.6.1.mlp.fc2.weight"])


@pytest.mark.parametrize("lost", ["dist_head.weight", "dist_head.bias", "head.bias"])
def test_half_a_classifier_is_refused_by_name(tmp_path, lost):
    weights = {key: value for key, value in BOTH.items() if key != lost}
    with pytest.raises((ValueError, RuntimeError), match=lost.replace("dist_head", "head_dist")):
        load(weights, tmp_path)


def test_ours_with_one_classifier_is_refused(tmp_path):
    weights = load(BOTH, tmp_path).state_dict()
    weights = {key: value for key, value in weights.items() if not key.startswith("head_dist.")}
    with pytest.raises((ValueError, RuntimeError), match=r"head_dist\.weight"):
        load(weights, tmp_path)
