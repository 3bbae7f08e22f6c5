"""Nothing that docs/generate.py writes is stale."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate, distill_digits, pictures = load("generate"), load("distill_digits"), load("pictures")


def test_nothing_is_stale():
    assert generate.check() == []


def test_every_variant_has_one_hub_config():
    assert generate.variants()
    assert len(list((ROOT / "hub_configs").glob("*.json"))) == len(generate.variants())


@pytest.mark.parametrize("path", sorted((ROOT / "hub_configs").glob("*.json")), ids=lambda path: path.stem)
def test_hub_config_tells_the_model(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    name = config["architecture"]
    assert path.stem in (name, f"{name}.{config['tag']}")
    model = timm.create_model(f"{name}.{config['tag']}")
    assert config["num_classes"] == model.num_classes
    assert config["params"] == sum(p.numel() for p in model.parameters())
    cfg = timm.get_pretrained_cfg(f"{name}.{config['tag']}")
    for field in ("input_size", "mean", "std"):
        assert config[field] == list(getattr(cfg, field))


def test_a_changed_missing_or_left_over_file_is_named(tmp_path):
    (tmp_path / "docs").mkdir()
    for page in generate.PAGES:
        (tmp_path / page).write_text(f"{generate.BEGIN}\n{generate.END}\n", encoding="utf-8")
    assert set(generate.PAGES) < set(generate.check(tmp_path))
    generate.write(tmp_path)
    assert generate.check(tmp_path) == []
    configs = sorted((tmp_path / "hub_configs").glob("*.json"))
    configs[0].write_text("{}\n", encoding="utf-8")
    configs[1].unlink()
    (tmp_path / "hub_configs" / "gone.json").write_text("{}\n", encoding="utf-8")
    stale = {f"hub_configs/{path.name}" for path in configs[:2]} | {"hub_configs/gone.json"}
    assert set(generate.check(tmp_path)) == stale
    generate.write(tmp_path)
    assert generate.check(tmp_path) == []


@pytest.mark.parametrize("path", distill_digits.PAGES, ids=lambda path: path.parent.name)
def test_the_tables_of_distillation_are_what_was_measured(path):
    assert path.read_text(encoding="utf-8") == distill_digits.page(path)


def test_every_way_to_learn_was_measured_with_every_seed():
    assert all(len(found) == 3 for (student, _), found in distill_digits.groups().items() if student != "teacher")
    ways = sum(len(ways) for _, _, ways in distill_digits.STUDENTS)
    assert len(distill_digits.groups()) == ways + 1


def test_a_mobilevit_block_reaches_what_its_page_says():
    reached = {part: pictures.dependence(part, 8, (3, 4), seeds=1) > 0 for part in ("convolutions", "transformer")}
    rows, columns = np.indices((8, 8))
    assert (reached["convolutions"] == (abs(rows - 3) <= 1) & (abs(columns - 4) <= 1)).all()
    assert (reached["transformer"] == (rows % 2 == 1) & (columns % 2 == 0)).all()
    assert (pictures.dependence("block", 8, (3, 4), seeds=1) > 0).all()


def test_every_picture_of_the_pages_is_drawn_by_our_code():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "learn").glob("*.md"))
    drawn = {*pictures.PICTURES, distill_digits.PICTURE.stem}
    assert set(re.findall(r"img/([\w-]+)\.png", text)) == drawn == {path.stem for path in pictures.IMAGES.iterdir()}
