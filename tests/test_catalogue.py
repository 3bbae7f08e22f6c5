"""The list of networks: from Python and in a shell, the same facts that the hub configs and timm have."""

import json
import sys
from pathlib import Path

import pytest
import timm
from zoo import NAMES

import timm_mobilevit_zoo
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.models.pins import package_configs
from timm_mobilevit_zoo_cli import catalogue

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "tools"))
import light

LIGHT = json.loads(light.LIGHT.read_text(encoding="utf-8"))


def call(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    return stopped.value.code, *capsys.readouterr()


def test_all_our_names_are_there_with_what_their_hub_configs_say():
    found = timm_mobilevit_zoo.list_models()
    assert set(found) == set(NAMES)
    for (name, tag), config in package_configs().items():
        facts = found[name]
        of_tag = facts["tags"][tag]
        assert not facts["timm"]
        assert [of_tag[key] for key in ("params", "gmacs")] == [config.content[key] for key in ("params", "gmacs")]
        assert of_tag["img_size"] == config.content["input_size"][1:]
        assert of_tag["license"] == config.content["license"]
        assert of_tag["top1"] == (config.content["published"] or {}).get("imagenet_1k_top1")
        assert of_tag["weights"] == (tag in facts["weights"])
        assert of_tag["weights"] == bool(timm.get_pretrained_cfg(f"{name}.{tag}").has_weights)


def test_the_first_tag_is_the_one_that_a_bare_name_means():
    for name, facts in timm_mobilevit_zoo.list_models().items():
        cfg = timm.get_pretrained_cfg(name)
        assert next(iter(facts["tags"])) == cfg.tag
        assert facts["img_size"] == list(cfg.input_size[1:])
        assert facts["params"] == facts["tags"][cfg.tag]["params"]


def test_families_stand_together_smallest_first():
    sizes = [facts["params"] for facts in timm_mobilevit_zoo.list_models("mobilevitv3_").values()]
    assert sizes == sorted(sizes)
    prefixes = [name.split("_")[0] for name in timm_mobilevit_zoo.list_models()]
    assert [prefix for i, prefix in enumerate(prefixes) if prefix not in prefixes[:i]] == sorted(set(prefixes))


@pytest.mark.parametrize(
    ("pattern", "some", "none"),
    [
        ("recnext_m*", "recnext_m0", "recnext_t"),
        ("cloformer", "cloformer_s", "casvit_s"),
        ("*.in1k_384", "casvit_t", "cloformer_s"),
        ("cloformer_xxs", "cloformer_xxs", "cloformer_xxs_local"),
    ],
)
def test_a_pattern_chooses(pattern, some, none):
    found = timm_mobilevit_zoo.list_models(pattern)
    assert some in found
    assert none not in found
    assert found[some] == timm_mobilevit_zoo.list_models()[some]


def test_a_pattern_that_fits_nothing_gets_the_nearest_names():
    with pytest.raises(ValueError, match=r"pattern='casvit_l' matches no name; did you mean casvit_"):
        timm_mobilevit_zoo.list_models("casvit_l")
    with pytest.raises(ValueError, match=r"pattern='mobilevit_xss' matches no name; did you mean mobilevit_xs"):
        timm_mobilevit_zoo.list_models("mobilevit_xss")  # timm's, too
    with pytest.raises(ValueError, match=r"matches no name$"):
        timm_mobilevit_zoo.list_models("[")


def test_all_are_ours_and_then_timms():
    ours, found = timm_mobilevit_zoo.list_models(), timm_mobilevit_zoo.list_models(all=True)
    assert list(found)[: len(ours)] == list(ours)
    theirs = list(found)[len(ours) :]
    assert {"mobilevit_xxs", "mobilevitv2_100", "ghostnet_100"} <= set(theirs)
    assert all(timm.is_model(name) and found[name]["timm"] for name in theirs)
    assert all(found[name]["params"] <= light.MOST and found[name]["weights"] for name in theirs)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "lcnet_050"])
def test_what_is_written_of_a_network_of_timms_is_what_timm_builds(name):
    assert light.entry(name)["params"] == LIGHT["models"][name]["params"]
    if timm.__version__ == LIGHT["timm"]:
        assert light.entry(name) == LIGHT["models"][name]


def test_names_that_are_not_light_are_left_out():
    assert light.entry("vit_tiny_patch16_224") is None or "vit_tiny_patch16_224" in LIGHT["models"]
    assert light.entry("resnet50") is None
    assert light.entry(NAMES[0]) is None or bool(timm.get_pretrained_cfg(NAMES[0]).has_weights)


def test_a_name_that_timm_takes_is_listed_as_it_is_registered(monkeypatch):
    monkeypatch.setattr(catalogue, "_of_timm", lambda: {"cloformer_xxs"})
    catalogue._ours.cache_clear()
    try:
        found = catalogue.list_models()
        assert "zoo_cloformer_xxs" in found
        assert "cloformer_xxs" not in found
    finally:
        catalogue._ours.cache_clear()


def test_timms_names_are_read_as_timm_registers_them():
    here = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")}
    assert here == catalogue._of_timm()


def test_the_command_prints_a_table(capsys):
    code, out, _ = call(capsys, "models", "recnext_m")
    assert code == 0
    head, first, *_ = out.splitlines()
    assert head.split() == ["name", "params", "(M)", "GMACs", "image", "top-1,", "%", "weights"]
    assert first.split() == [
        "recnext_m0",
        "2.83",
        "0.405",
        "224",
        "x",
        "224",
        "74.68",
        "dist_300e_in1k,",
        "base_300e_in1k",
    ]
    assert "claim" in out
    code, out, _ = call(capsys, "models", "cloformer_xxs")
    assert out.splitlines()[1].endswith("none published")
    assert "timm's own" not in out
    assert "mobilevitv2_050" in call(capsys, "models", "--all", "mobilevitv2")[1]


def test_the_command_prints_json(capsys):
    code, out, _ = call(capsys, "models", "--json", "cloformer")
    assert code == 0
    assert {row.pop("name"): row for row in json.loads(out)} == timm_mobilevit_zoo.list_models("cloformer")
