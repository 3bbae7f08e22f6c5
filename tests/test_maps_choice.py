"""Of all maps those are drawn on which a person sees something, and what is left out is told."""

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from runs import FAST
from zoo import FIXED, KINDS, create, image, limits

from timm_mobilevit_zoo.common.images import data_config, reader
from timm_mobilevit_zoo.maps import draw, draw_file, drawing
from timm_mobilevit_zoo.maps.panels import Panel, choose, clarity, is_flat, panels_of
from timm_mobilevit_zoo.maps.recording import record
from timm_mobilevit_zoo.predict import load, predict

CLO = "cloformer_xxs"


def panel(title, kind="gate", side=8, spread=1.0, cells=None):
    values = torch.linspace(0, spread, side * side).view(side, side) + 1
    return Panel(title, kind, values, cells or (side, side))


def shown(figure):
    """What each panel but the first is called."""
    axes = [axis for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]
    assert axes[0].get_title() == "the image"
    return axes[0], [axis.get_title() for axis in axes[1:]]


@pytest.mark.parametrize("name", [name for name in KINDS if "test_a_network_has_maps" not in limits(name)])
def test_cells_are_the_layers_own(name):
    network = create(name)
    x = image(*(network.pretrained_cfg["input_size"][1:] if name in FIXED else (64, 64)), batch=1)
    for one in panels_of(network, x, record(network, x)):
        assert one.kind == "matrix" or len(one.values.unique()) <= np.prod(one.cells)
        assert all(cells <= side for cells, side in zip(one.cells, one.values.shape, strict=True))


def test_a_key_that_fills_many_cells_is_one():
    network, x = create(CLO), image(64, 64, batch=1)
    pooled = [one for one in panels_of(network, x, record(network, x)) if one.kind == "received"]
    assert {tuple(one.values.shape) for one in pooled} == {(16, 16), (8, 8), (4, 4), (2, 2)}
    assert {one.cells for one in pooled} == {(2, 2)}


def test_clarity_grows_with_spread_and_cells():
    assert clarity(panel("", spread=2)) > clarity(panel("", spread=1)) > 0
    assert clarity(panel("", side=16)) > clarity(panel("", side=8))
    assert clarity(panel("", side=8, cells=(2, 2))) < clarity(panel("", side=4))
    assert clarity(panel("", spread=0)) == clarity(panel("", kind="matrix")) == 0


def test_the_clearest_of_each_kind_and_then_of_all_are_chosen():
    panels = [panel(f"g{i}", spread=i) for i in range(6)]
    panels += [panel("coarse", side=2, spread=9), panel("r1", "received", 4, 0.1), panel("r2", "received", 4, 0.2)]
    panels += [panel("m", "matrix")]
    assert [one.title for one in choose(panels, 5)] == ["g3", "g4", "g5", "r2", "m"], "in their order"
    assert [one.title for one in choose(panels, 99)] == [one.title for one in panels[1:]], "all but what is flat"
    assert choose(panels[:1], 5) == []


def test_the_figure_begins_with_the_image_and_its_classes(tmp_path, run):
    folder, _ = run
    network = load(str(folder))
    Image.linear_gradient("L").save(tmp_path / "a.png")
    (wanted,) = predict(network, [str(tmp_path / "a.png")], top=3)
    x = reader(data_config(network))(tmp_path / "a.png")[None]
    first, titles = shown(draw(network, x))
    lines = [f"{one['label']} {100 * one['probability']:.1f}%" for one in wanted["classes"]]
    assert first.get_xlabel().splitlines() == lines
    pixels = first.images[0].get_array()
    assert pixels.shape == (*x.shape[2:], 3)
    np.testing.assert_allclose(pixels.mean((1, 2)), np.linspace(0, 1, x.shape[2]), atol=0.05)
    assert len(titles) == 7
    backbone = timm.create_model(FAST, features_only=True)
    assert shown(draw(backbone, image(32, 32, batch=1)))[0].get_xlabel() == "", "which tells no classes"


def test_a_person_sees_the_digit(digits, run):
    network = load(str(run[0]))
    path = sorted((digits / "val" / "3").iterdir())[0]
    x = reader(data_config(network))(path)[None]
    chosen = choose(panels_of(network, x, record(network, x)), 7)
    assert len(chosen) == 7
    alike = []
    for one in chosen:
        small = torch.nn.functional.adaptive_avg_pool2d(x.mean(1), one.values.shape)[0]
        alike.append(abs(float(torch.corrcoef(torch.stack([small.flatten(), one.values.flatten()]))[0, 1])))
    assert max(alike) > 0.5
    assert max(min(one.cells) for one in chosen) >= 8


def test_what_is_the_same_everywhere_is_told_and_not_drawn(tmp_path, capsys, monkeypatch):
    network, x = create(CLO), image(32, 32, batch=1)
    flat = [one.title for one in panels_of(network, x, record(network, x)) if is_flat(one)]
    assert "stage1.blocks.0.attn.pooled_attn" in flat, "of one window, and so of one key"
    figure = draw(network, x, all_layers=True)
    assert not set(flat) & set(shown(figure)[1])
    told = " ".join(figure.get_suptitle().split())
    assert f"left out, the same everywhere, as attention to a single key is: {', '.join(flat)}" in told
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))  # which takes seconds
    draw_file(CLO, str(tmp_path / "a.png"), output=str(tmp_path / "maps.svg"), img_size=32)
    assert "left out, the same everywhere" in capsys.readouterr().out


def test_random_weights_stand_in_the_caption(tmp_path, monkeypatch):
    figures = []
    real = drawing._figure
    monkeypatch.setattr(drawing, "_figure", lambda *args: figures.append(real(*args)) or figures[-1])
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    draw_file(FAST, str(tmp_path / "a.png"), output=str(tmp_path / "maps.svg"))
    assert figures[0].drawn.get_suptitle().startswith(f"random weights: {FAST}\n")
