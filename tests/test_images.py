"""One function reads images everywhere: upright as viewers show them, and only those that are a user's own."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from zoo import KINDS

from timm_mobilevit_zoo.common.images import images_in, read_image
from timm_mobilevit_zoo.predict import predict

# For each EXIF orientation where the upright image's top left pixel is stored: what turns it back is then its inverse.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("mode", "ending"), [("RGB", "png"), ("RGB", "tiff"), ("L", "png"), ("RGB", "webp")])
def test_photos_stand_upright(tmp_path, orientation, mode, ending):
    upright = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    stored = np.ascontiguousarray(TURNS[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(stored).convert(mode).save(tmp_path / f"photo.{ending}", exif=exif, **options)
    found = np.asarray(read_image(tmp_path / f"photo.{ending}", "L"))
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).max() <= 1, "grey of three equal colours is rounded"


def test_other_orientations_are_none(tmp_path):
    for number, orientation in enumerate((0, 9, 65535)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("L", (5, 3)).save(tmp_path / f"{number}.png", exif=exif)
        assert read_image(tmp_path / f"{number}.png", "L").size == (5, 3)


def test_malformed_tags_are_no_reason_to_refuse_a_photo(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "photo.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert read_image(tmp_path / "photo.jpg", "RGB").size == (5, 3)


def test_hidden_files_are_nobodys(tmp_path):
    for name in (
        "a.png",
        "sub/b.png",
        ".thumbnails/a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "@eaDir/a.png",
        "sub/__MACOSX/b.png",
        "._a.png",
        "sub/.b.png",
        "Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert images_in(tmp_path) == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]


@pytest.mark.parametrize("name", KINDS)
def test_predictions_are_made_in_evaluation_mode(name, tmp_path):
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.linear_gradient("L").rotate(90 * i).save(paths[-1])
    network = timm.create_model(name, num_classes=3, drop_rate=0.5)  # timm returns it in training mode
    network.get_submodule(network.pretrained_cfg["first_conv"]).eval()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    together, alone = predict(network, paths)[0], predict(network, paths[:1])[0]
    for one, other in zip(together["classes"], alone["classes"], strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
