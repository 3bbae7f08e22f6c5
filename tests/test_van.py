"""VAN: two files for each name, what their authors ask of those who use them, and a large kernel of parts."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F  # noqa: N812
from zoo import create

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.attention import LargeKernelAttention
from timm_mobilevit_zoo.models import places
from timm_mobilevit_zoo.models.probe import seed_weights

NAME = "van_b0"
ROOT = Path(__file__).resolve().parent.parent
SIZES = {"b0": ("Tiny", "van_tiny_754", "385941af"), "b1": ("Small", "van_small_811", "17bc91aa")}
SIZES |= {"b2": ("Base", "van_base_828", "6a4cc31b")}


@pytest.mark.parametrize("size", SIZES)
def test_each_name_has_the_authors_file_and_openmmlabs(size):
    name, (theirs, file, digits) = f"van_{size}", SIZES[size]
    assert timm.get_pretrained_cfg(name).tag == "in1k"
    found, other = (places.places()[f"{name}.{tag}"] for tag in ("in1k", "openmmlab_in1k"))
    assert (found.repo_id.lower(), found.file) == (
        f"visual-attention-network/van-{theirs.lower()}-original",
        f"{file}.pth.tar",
    )
    folder = "https://download.openmmlab.com/mmclassification/v0/van/"
    assert other.url == f"{folder}van-{theirs.lower()}_8xb128_in1k_20220501-{digits}.pth"
    assert places.leading_digits(other.file) == digits
    for config, by in ((name, "authors"), (f"{name}.openmmlab_in1k", "OpenMMLab")):
        told = json.loads((ROOT / "hub_configs" / f"{config}.json").read_text(encoding="utf-8"))
        assert told["published"]["claimed_by"] == by
        assert (told["mean"], told["std"], told["crop_pct"]) == ([0.5] * 3, [0.5] * 3, 0.9)


def test_cards_repeat_what_the_authors_ask_of_commercial_users(tmp_path):
    model = seed_weights(create(NAME, num_classes=3))
    hub.export(model, tmp_path / "folder", card={"license": "apache-2.0"})
    asked = "for commercial use, please contact the authors"
    assert f"Note: the authors' README says: {asked}\n" in (tmp_path / "folder" / "README.md").read_text()
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert asked in " ".join(re.search(r"^## VAN\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)[1].lower().split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (3, 3, 0, 2)}, r"depths=\(3, 3, 0, 2\) needs whole numbers from 1"),
        ({"mlp_ratios": 8}, "mlp_ratios=8 needs 4 entries, one a stage"),
        ({"proj_drop_rate": -0.1}, "proj_drop_rate=-0.1 must be at least 0 and below 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(NAME, **arguments)


@pytest.mark.parametrize("arguments", [{"dim": 0}, {"dim": 8.0}, {"dilation": 0}, {"dilation": True}])
def test_the_module_names_wrong_arguments(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be a whole number from 1"):
        LargeKernelAttention(**{"dim": 8, **arguments})


def test_a_cell_sees_those_that_are_eleven_away():
    module = seed_weights(LargeKernelAttention(4)).eval()
    x = torch.randn(1, 4, 41, 41, requires_grad=True)
    module(x)[0, :, 20, 20].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero().T
    reach = torch.stack([rows, columns]) - 20
    assert (reach.min(), reach.max()) == (-11, 11)


def pointwise(conv, x):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def whole_kernel(module, size):
    """The two depthwise convolutions as one kernel, as wide as two maps: what one cell becomes."""
    H, W = size
    one = torch.zeros(1, len(module.near.weight), 2 * H + 1, 2 * W + 1, dtype=torch.double)
    one[:, :, H, W] = 1
    near = F.conv2d(one, module.near.weight, None, 1, 2, 1, one.shape[1])
    return F.conv2d(near, module.far.weight, None, 1, 9, 3, one.shape[1])[0].flip(1, 2)


@pytest.mark.parametrize("size", [(48, 48), (31, 37)])
def test_large_kernel_attention_computes_its_equations(size):
    """Far from the edges, where the parts see zeros between them, they are one kernel."""
    module, (H, W) = seed_weights(LargeKernelAttention(4)).eval(), size
    x = torch.randn(1, 4, H, W)
    ours = module(x)
    module, x = module.double(), x.double()
    y = F.gelu(pointwise(module.proj_in, x))
    kernel = whole_kernel(module, size)
    seen = F.conv2d(y, kernel[:, None], None, 1, (H, W), 1, 4)
    seen = seen + (module.near.bias * module.far.weight.sum((1, 2, 3)) + module.far.bias)[:, None, None]
    theirs = pointwise(module.proj, y * pointwise(module.mix, seen))
    inside = slice(None), slice(None), slice(11, H - 11), slice(11, W - 11)
    torch.testing.assert_close(ours.double()[inside], theirs[inside], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (3, 5), (1, 1)])
def test_a_dilated_module_keeps_its_cells(size):
    plain, dilated = (seed_weights(LargeKernelAttention(8, dilation)).eval() for dilation in (1, 3))
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(dilated(x)[:, :, ::3, ::3], plain(x[:, :, ::3, ::3]))
