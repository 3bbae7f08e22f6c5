"""Checkpoints of every kind: those that fit become a folder, the others an error and nothing else."""

import argparse
import os
import pickle
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from zoo import EVERY_SIZE, GOLDEN, RECORDED, author_weights, close, create, every_kind, image

from timm_mobilevit_zoo import hub
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.convert import convert, read_checkpoint

GOLDEN_OF_NAME = min(GOLDEN, key=lambda path: sum(value.numel() for value in author_weights(path).values()))
NAME = GOLDEN_OF_NAME.stem


@pytest.fixture
def tensors():
    return author_weights(GOLDEN_OF_NAME)


def expected(tmp_path, tensors):
    save_file(tensors, tmp_path / "expected.safetensors")
    return create(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "expected.safetensors")})


# What a family's layout becomes, tests of parity compare; here it is on its way into a folder.
FEW = RECORDED if EVERY_SIZE else RECORDED[-3:]


@pytest.mark.parametrize("path", FEW, ids=lambda path: path.stem)
def test_authors_checkpoints_become_folders(path, tmp_path):
    torch.save({"model": author_weights(path), "epoch": 3}, tmp_path / "authors.pth")
    found = convert(str(tmp_path / "authors.pth"), model=path.stem, output=str(tmp_path / "out"), license="mit")
    assert found == hub.check(tmp_path / "out")
    assert found["architecture"] == path.stem
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    save_file(author_weights(path), tmp_path / "authors.safetensors")
    direct = create(path.stem, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "authors.safetensors")})
    assert all(torch.equal(model.state_dict()[key], value) for key, value in direct.state_dict().items())


@pytest.mark.parametrize(
    ("suffix", "nest"),
    [
        ("pth", lambda weights: weights),
        ("pt", lambda weights: {"state_dict": weights}),
        ("tar", lambda weights: {"state_dict": {"model": weights}, "optimizer": {"state": {0: torch.ones(2)}}}),
        ("tar", lambda weights: {"state_dict": weights, "args": argparse.Namespace(lr=0.1)}),  # as timm's train.py does
        ("pth", lambda weights: {f"module.{key}": value for key, value in weights.items()}),
        ("pth", lambda weights: {"model": {f"_orig_mod.module.{key}": value for key, value in weights.items()}}),
    ],
)
def test_nests_and_prefixes(tmp_path, tensors, suffix, nest):
    torch.save(nest(tensors), tmp_path / f"file.{suffix}")
    convert(str(tmp_path / f"file.{suffix}"), model=NAME, output=str(tmp_path / "out"), license="mit")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = image(*model.pretrained_cfg["input_size"][1:])
    close(model(x), expected(tmp_path, tensors)(x))


def test_what_pickles_may_hold_is_as_before(tmp_path, tensors):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": tensors, "args": argparse.Namespace(lr=0.1)}, tmp_path / "file.pth")
    assert read_checkpoint(tmp_path / "file.pth").keys() == tensors.keys()
    assert set(torch.serialization.get_safe_globals()) == before


def test_averaged_weights_when_asked(tmp_path, tensors):
    doubled = {key: 2 * value for key, value in tensors.items()}
    torch.save({"state_dict": tensors, "state_dict_ema": doubled}, tmp_path / "both.pth")
    key = next(iter(tensors))
    assert torch.equal(read_checkpoint(tmp_path / "both.pth")[key], tensors[key])
    assert torch.equal(read_checkpoint(tmp_path / "both.pth", ema=True)[key], doubled[key])
    torch.save(tensors, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="holds no averaged weights"):
        read_checkpoint(tmp_path / "plain.pth", ema=True)


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, _: None, "is not a file"),
        (lambda path, _: path.write_text("hello"), "cannot be read as weights"),
        (lambda path, _: path.write_bytes(b""), "cannot be read as weights"),
        (lambda path, _: path.write_bytes(pickle.dumps(Evil())), "cannot be read as weights"),
        (
            lambda path, _: torch.save({"model": Evil()}, path),
            "as weights: UnpicklingError: .* GLOBAL .*system",
        ),
        (lambda path, _: bomb(path), "unpacks to 10,000,000 bytes"),
        (
            lambda path, w: (torch.save(w, path), path.write_bytes(path.read_bytes()[:-500])),
            "cannot be read as weights",
        ),
        (lambda path, _: torch.save([1, 2], path), "holds no tensors by name"),
        (lambda path, _: torch.save({"epoch": 3}, path), "holds no tensors by name"),
        (lambda path, w: torch.save(w | {"stray.weight": torch.ones(1)}, path), r"stray\.weight is unknown"),
        (lambda path, w: torch.save(dict(list(w.items())[1:]), path), "is missing"),
        (lambda path, w: torch.save(w | {next(iter(w)): torch.ones(1, 2)}, path), r"is \(1, 2\), not"),
        (lambda path, w: torch.save(w | {next(iter(w)): float("nan") * next(iter(w.values()))}, path), "holds NaN"),
        (lambda path, _: torch.save(timm.create_model("test_vit").state_dict(), path), "does not fit"),
    ],
)
def test_what_cannot_be_converted(tmp_path, tensors, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file.pth", tensors)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        convert("file.pth", model=NAME, output="out", license="mit")
    assert "weights_only" not in str(raised.value), "torch's advice on how to run what the file holds"
    assert set(os.listdir(tmp_path)) <= {"file.pth"}


@pytest.mark.parametrize("path", FEW, ids=lambda path: path.stem)
def test_an_image_size_is_for_models_made_for_one(path, tmp_path):
    torch.save(author_weights(path), tmp_path / "authors.pth")
    convert(str(tmp_path / "authors.pth"), model=path.stem, output=str(tmp_path / "out"), license="mit", img_size=64)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.isfinite(model(image(64, 64))).all()


def test_a_checkpoint_that_holds_itself(tmp_path, tensors):
    loop = {"epoch": 3}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_checkpoint(tmp_path / "loop.pth")


@every_kind
def test_tensors_of_odd_shapes(name, tmp_path):
    shapes = [(), (0,), (3,), (2, 2, 2, 2)]
    for number, shape in enumerate(shapes):
        torch.save({key: torch.zeros(shape) for key in create(name).state_dict()}, tmp_path / f"{number}.pth")
        with pytest.raises(ValueError, match=f"checkpoint=.* does not fit {name}: ."):
            convert(str(tmp_path / f"{number}.pth"), model=name, output=str(tmp_path / "out"), license="mit")
    assert len(os.listdir(tmp_path)) == len(shapes)


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")], ids=["sparse", "meta"])
def test_tensors_that_are_no_plain_ones(tmp_path, tensors, change):
    torch.save({key: change(value) if value.dim() > 1 else value for key, value in tensors.items()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"checkpoint=.* does not fit"):
        convert(str(tmp_path / "a.pth"), model=NAME, output=str(tmp_path / "out"), license="mit")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_broken_safetensors(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        convert(str(tmp_path / "file.safetensors"), model=NAME, output=str(tmp_path / "out"), license="mit")
    with pytest.raises(ValueError, match="model='resnet18' is not one of this package's"):
        convert(str(tmp_path / "file.safetensors"), model="resnet18", output=str(tmp_path / "out"), license="mit")


def test_commands(tmp_path, tensors, capsys):
    torch.save(tensors, tmp_path / "file.pth")

    def call(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        return stopped.value.code, *capsys.readouterr()

    code, out, _ = call("convert", tmp_path / "file.pth", "-m", NAME, "-o", tmp_path / "out", "--license", "MIT")
    assert (code, out.split(":")[0]) == (0, f"wrote {tmp_path / 'out'}")
    assert "license: mit\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")  # as the Hub spells it
    code, out, _ = call("check", tmp_path / "out")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'out'}: {NAME}, ")
    assert "model.safetensors sha256 " in out
    (tmp_path / "out" / "weights.bin").write_text("x")
    code, _, err = call("check", tmp_path / "out")
    assert code == 2
    assert err == "timm-mobilevit-zoo: error: weights.bin is a pickle or an archive; weights are safetensors only\n"
    code, _, err = call("convert", tmp_path / "file.pth", "-m", NAME, "-o", tmp_path / "new", "--license", "MTI")
    assert code == 2
    assert (
        "--license MTI is not one that the Hub knows, such as mit, apache-2.0, cc-by-4.0 or other; did you mean mit?"
        in err
    )
