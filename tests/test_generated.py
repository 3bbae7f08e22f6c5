"""Nothing that docs/generate.py writes is stale."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).resolve().parent.parent

_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


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
