"""One function reads images everywhere: upright as viewers show them, and only those that are a user's own."""

import os
import resource
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import FAST
from zoo import KINDS

from timm_mobilevit_zoo.common.images import Pixels, data_config, images_in, read_image, reader, walk
from timm_mobilevit_zoo.export.compare import classes_of, real_images
from timm_mobilevit_zoo.maps import draw_file
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


def turned(folder, orientation, ending="jpg"):
    """Write a photo whose quarters differ, stored as an orientation says, and the same upright without one."""
    upright = np.kron([[0, 80], [160, 240]], np.ones((24, 40))).astype(np.uint8)
    paths = [folder / f"upright.{ending}", folder / f"{orientation}.{ending}"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    for path, pixels, tags in ((paths[0], upright, Image.Exif()), (paths[1], TURNS[orientation](upright), exif)):
        Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(path, exif=tags, **options)
    return paths


@pytest.mark.parametrize("orientation", TURNS)
def test_everyone_sees_photos_upright(tmp_path, monkeypatch, orientation):
    class SeenError(Exception):
        pass

    def see(network, x):
        raise SeenError(x)

    monkeypatch.setattr("timm_mobilevit_zoo.maps.drawing.run", see)
    network = timm.create_model(FAST, num_classes=2).eval()
    config = data_config(network)
    for ending in ("jpg", "png", "tiff", "webp"):
        paths = turned(tmp_path, orientation, ending)
        upright, found = (reader(config)(path) for path in paths)  # what predicts
        assert torch.equal(found, upright)
        assert upright[0, 0, 0] < upright[0, 0, -1] < upright[0, -1, 0] < upright[0, -1, -1], "or it lies"
        assert torch.equal(next(iter(real_images(paths[1:], config)))[0], upright), "calibration and comparisons"
        with pytest.raises(SeenError) as drawn:
            draw_file(FAST, str(paths[1]), output=str(tmp_path / "maps.svg"))
        assert torch.equal(drawn.value.args[0][0], upright), "maps"
    first, second = predict(network, [str(path) for path in paths])
    assert first["classes"] == second["classes"]


def test_an_orientation_that_no_browser_heeds_is_none(tmp_path):
    told = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>6</tiff:Orientation>'
    for ending in ("jpg", "webp"):
        Image.new("L", (5, 3)).convert("RGB").save(tmp_path / f"x.{ending}", xmp=told.encode())
        with Image.open(tmp_path / f"x.{ending}") as file:
            assert file.getexif().get(0x0112, 6) == 6, "Pillow heeds it since 11"
        assert read_image(tmp_path / f"x.{ending}", "L").size == (5, 3)


def test_what_a_data_set_of_timms_opens_is_not_turned(tmp_path):
    with Image.open(turned(tmp_path, 6)[1]) as opened:
        assert opened.getexif()[0x0112] == 6
        assert Pixels(CONFIG)(opened).size == opened.size == (48, 80)


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


RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_pixels_of_every_kind(tmp_path, mode, wanted):
    grey = Image.fromarray(RAMP if mode != "1" else np.where(RAMP > 127, 255, 0).astype(np.uint8))
    picture = grey.convert("RGB").convert(mode) if mode == "LAB" else grey.convert(mode)
    if mode in ("YCbCr", "HSV"):  # which no format here holds, but a data set may
        found = Pixels({"input_size": (1 if wanted == "L" else 3, 8, 8), "crop_mode": "center"})(picture)
    else:
        ending = "tiff" if mode in ("CMYK", "LAB", "RGBX") else "png"
        picture.save(tmp_path / f"x.{ending}")
        found = read_image(tmp_path / f"x.{ending}", wanted)
    assert found.mode == wanted
    assert abs(np.asarray(found.convert("L")).astype(int) - np.asarray(grey)).max() <= 1


def clear(mode):
    """A picture of two pixels, a black one and one that is transparent, red beneath."""
    colours = Image.fromarray(np.array([[[0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8))
    if mode == "P":
        picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 0, 0])
        return picture, {"transparency": 1}
    if mode in ("L", "1"):
        return Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode), {"transparency": 0}
    if mode == "RGB":
        return colours.convert("RGB"), {"transparency": (255, 0, 0)}
    return colours.convert(mode), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_what_is_transparent_lies_on_white(tmp_path, mode, wanted):
    picture, options = clear(mode)
    picture.save(tmp_path / "x.png", **options)
    first = 255 if mode in ("L", "1") else 0  # there black itself is transparent
    assert np.asarray(read_image(tmp_path / "x.png", wanted).convert("L")).tolist() == [[first, 255]]


def test_what_is_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (1, 1), (0, 0, 255, 128)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", "RGB").getpixel((0, 0)) == pytest.approx((127, 127, 255), abs=1)


def test_the_first_picture_of_an_animation_is_taken(tmp_path):
    first, *others = (Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "black"))
    for ending in ("gif", "png", "webp", "tiff"):
        first.save(tmp_path / f"x.{ending}", save_all=True, append_images=others)
        assert read_image(tmp_path / f"x.{ending}", "L").getpixel((0, 0)) >= 254


NUMBERS = {
    "real": (RAMP.astype(np.float32) / 255, True),
    "16 bits": (RAMP.astype(np.uint16) * 257, True),
    "32 bits": (RAMP.astype(np.int32) * 257, True),
    "real up to 255": (RAMP.astype(np.float32), False),
    "real and negative": (RAMP.astype(np.float32) / 255 - 0.5, False),
    "no number": (np.full((8, 8), np.nan, np.float32), False),
    "infinite": (np.full((8, 8), np.inf, np.float32), False),
    "8 of 16 bits": (RAMP.astype(np.uint16), False),
    "12 of 16 bits": (RAMP.astype(np.uint16) * 16, False),
    "8 of 32 bits": (RAMP.astype(np.int32), False),
    "24 of 32 bits": (RAMP.astype(np.int32) * 65793, False),
    "negative": (RAMP.astype(np.int32) * 257 - 9, False),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_other_numbers_than_8_bits(tmp_path, kind):
    values, known = NUMBERS[kind]
    Image.fromarray(values).save(tmp_path / "x.tiff")
    if known:
        assert np.asarray(read_image(tmp_path / "x.tiff", "L")).tolist() == RAMP.tolist()
    else:
        with pytest.raises(ValueError, match=r"x.tiff cannot be read: its pixels are numbers from .* to .*; "):
            read_image(tmp_path / "x.tiff", "L")


def test_16_bits_of_three_colours(tmp_path):
    pixels = np.array([[[0, 128 * 257, 65535]]], ">u2").tobytes()
    (tmp_path / "x.ppm").write_bytes(b"P6 1 1 65535\n" + pixels)
    assert read_image(tmp_path / "x.ppm", "RGB").getpixel((0, 0)) == (0, 128, 255)


CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "mean": (0.0,) * 3,
    "std": (1.0,) * 3,
    "crop_pct": 0.875,
    "crop_mode": "center",
}


@pytest.mark.parametrize("size", [(3, 3000), (3000, 3)])
def test_a_long_picture_is_cut_where_memory_ends(tmp_path, monkeypatch, size):
    Image.linear_gradient("L").resize(size).save(tmp_path / "x.png")
    whole = reader(CONFIG)(tmp_path / "x.png")
    monkeypatch.setattr("timm_mobilevit_zoo.common.images._RESIZED", 36 * 36 * 20)
    pixels = Pixels(CONFIG)
    assert max(pixels(Image.new("RGB", size)).size) == 3 * 20
    assert max(Pixels(CONFIG, evaluating=False)(Image.new("RGB", size)).size) == 3000, "a training crop lies anywhere"
    assert max(Pixels(CONFIG | {"crop_mode": "squash"})(Image.new("RGB", size)).size) == 3000, "all of it is wanted"
    assert abs(reader(CONFIG)(tmp_path / "x.png") - whole).max() < 0.02


def test_the_longest_picture_takes_no_more_memory_than_others(tmp_path):
    Image.linear_gradient("L").resize((1, 60000)).save(tmp_path / "x.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reader(CONFIG | {"input_size": (3, 224, 224)})(tmp_path / "x.png").shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "1 GiB; all of it would take 11"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crop_pct": 0.001}, r"crop_pct=0.001 of input_size=\(3, 32, 32\) has images resized to 32000 x 32000 pixels"),
        ({"input_size": (3, 20000, 20000)}, "resized to 22857 x 22857 pixels"),
        ({"crop_pct": 100.0}, "resized to 0 x 0 pixels"),
        ({"input_size": (5, 32, 32)}, r"images have 1 channel \(grey\) or 3, not 5"),
    ],
)
def test_what_no_memory_holds_is_refused_before(changed, message):
    with pytest.raises(ValueError, match=message):
        reader(CONFIG | changed)


def strange(folder):
    """Files that are named as pictures, and what is said of each."""
    Image.new("RGB", (64, 64), "red").save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "words.png").write_text("no picture")
    (folder / "empty.png").touch()
    huge = bytearray(content)
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(huge)
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "dark.png")
    return {
        "cut.png": "OSError",
        "words.png": "UnidentifiedImageError",
        "empty.png": "UnidentifiedImageError",
        "huge.png": "DecompressionBombError",
        "dark.png": "its pixels are numbers from 4000 to 4000",
    }


def test_everyone_says_the_same_of_a_picture_that_cannot_be_read(tmp_path):
    network = timm.create_model(FAST, num_classes=2).eval()
    for name, reason in strange(tmp_path).items():
        path = tmp_path / name
        with pytest.raises(ValueError, match=f"{name} cannot be read: {reason}") as found:
            read_image(path, "RGB")
        with pytest.raises(ValueError, match="cannot be read") as measured:
            list(real_images([path], data_config(network)))
        with pytest.raises(ValueError, match="cannot be read") as drawn:
            draw_file(FAST, str(path), output=str(tmp_path / "maps.svg"))
        said = {str(error.value) for error in (found, measured, drawn)} | {predict(network, [str(path)])[0]["error"]}
        assert said == {f"{path} cannot be read: {str(found.value).partition('read: ')[2]}"}


def test_nobody_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: it is not a regular file"):
            read_image(path, "L")
    assert images_in(tmp_path) == [tmp_path / "x.png"], "so that it is told of"


def test_a_walk_follows_links_but_in_no_circle(tmp_path):
    whole, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (whole / "a", whole / "b", elsewhere / "deep"):
        folder.mkdir(parents=True)
        (folder / "x.png").touch()
    (whole / "a" / "again").symlink_to(whole / "a")
    (whole / "a" / "all").symlink_to(tmp_path)
    (whole / "a" / "others").symlink_to(whole / "b")
    (whole / "a" / "out").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(elsewhere)
    (whole / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (whole / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (whole / "a" / "y.png").symlink_to(whole / "b" / "x.png")
    found = walk(whole / "a", whole)
    names = ["gone.png", "out/deep/x.png", "x.png", "y.png"]
    assert [str(path.relative_to(whole / "a")) for path in found.images] == names
    assert found.left_out == {"link to folder within": 3, "no ending": 1}
    assert found.links == 3, "out, up and gone.png"


def test_folders_lie_only_so_deep(tmp_path):
    here = tmp_path
    for _ in range(70):
        here /= "d"
        here.mkdir()
    with pytest.raises(ValueError, match="holds folders more than 64 deep in one another"):
        images_in(tmp_path)


def test_channels_agree():
    for channels in (1, 3, 5):
        config = data_config(timm.create_model(FAST, in_chans=channels), img_size=32)
        assert config["input_size"] == (channels, 32, 32)
        assert len(config["mean"]) == len(config["std"]) == channels
        assert list(real_images([], config)) == [], "of no file nothing is asked"


def test_classes_are_known_in_either_form_of_unicode(tmp_path):
    paths = [tmp_path / name / "x.png" for name in ("caf\u00e9", "cafe\u0301", "a")]
    assert classes_of(paths, ["a", "caf\u00e9"]).tolist() == [1, 1, 0]
    assert classes_of(paths, ["a", "b"]) is None


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
