"""Fresh networks are drawn, normalised and dropped as their authors' are: tests/golden/initial.json has the figures."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from zoo import STAGED, family, image

RECORDED = json.loads((Path(__file__).parent / "golden" / "initial.json").read_text(encoding="utf-8"))
SEEDS = range(3)
# Six standard errors: of thousands of layers none is out by chance, and the seeds are fixed.
SIGMAS = 6


def pattern(key):
    return re.sub(r"blocks\.\d+", "blocks.*", key)


def drawn(name):
    """Mean, standard deviation and count of what several fresh networks hold, by the layer's place in its block."""
    values = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        for key, value in timm.create_model(name).named_parameters():
            values.setdefault(pattern(key), []).append(value.detach().double().flatten())
    together = {key: torch.cat(parts) for key, parts in values.items()}
    return {key: (x.mean().item(), x.std(correction=0).item(), x.numel()) for key, x in together.items()}


def off(ours, theirs):
    """How far two samples' means and deviations are apart, in standard errors of a normal distribution's."""
    (mean, std, count), (their_mean, their_std, their_count) = ours, theirs
    if not std or not their_std:
        return 0 if (std, mean) == pytest.approx((their_std, their_mean), rel=1e-4, abs=1e-8) else float("inf")
    error = their_std * (1 / count + 1 / their_count) ** 0.5
    return max(abs(mean - their_mean) / error, abs(std - their_std) / error * 2**0.5)


@pytest.mark.parametrize("name", RECORDED)
def test_each_layer_is_drawn_as_the_authors_draw_it(name):
    ours, theirs = drawn(name), RECORDED[name]["drawn"]
    assert ours.keys() == theirs.keys()
    assert {key: (ours[key], theirs[key]) for key in ours if off(ours[key], theirs[key]) > SIGMAS} == {}


def test_another_deviation_would_be_seen():
    name = "casvit_xs"
    theirs = {key: (mean, 1.2 * std, count) for key, (mean, std, count) in RECORDED[name]["drawn"].items()}
    ours = drawn(name)
    varied = {key for key, (_, std, _) in ours.items() if std}
    unseen = {key for key in varied if off(ours[key], theirs[key]) <= SIGMAS}
    assert sum(theirs[key][2] for key in unseen) < 0.01 * sum(theirs[key][2] for key in varied), unseen  # short ones


@pytest.mark.parametrize("name", RECORDED)
def test_norms_have_the_authors_eps_and_momentum(name):
    model = timm.create_model(name)
    assert {
        pattern(path): [module.eps, getattr(module, "momentum", None)]
        for path, module in model.named_modules()
        if hasattr(module, "eps")
    } == RECORDED[name]["norms"]


@pytest.mark.parametrize("name", [name for name in RECORDED if RECORDED[name]["drop_path"]["rates"]])
def test_branches_are_dropped_at_the_authors_rates(name):
    told, rates = RECORDED[name]["drop_path"], []
    model = timm.create_model(name, drop_path_rate=told["rate"]).train()
    for module in model.modules():
        if isinstance(module, DropPath) and module.drop_prob:
            module.register_forward_pre_hook(lambda module, args: rates.append(module.drop_prob))
    model(image(128, 128))
    assert rates == pytest.approx(told["rates"], abs=1e-6)


def test_every_family_of_our_own_class_is_recorded():
    """MobileViTv3's authors' code may not be looked at; its layers are drawn by the rule that is tested beside it."""
    missing = {family(name) for name in STAGED} - set(map(family, RECORDED))
    assert {module.rpartition(".")[2] for module in missing} == {"mobilevitv3"}


@pytest.mark.parametrize("name", ["mobilevitv3_xxs", "mobilevitv3_050"])
def test_mobilevitv3_is_drawn_by_the_rule_of_the_networks_it_changes(name):
    """Convolutions: normal, variance 2 / fan-out; linear layers: truncated normal of 0.02; biases 0 (Apple's code)."""
    torch.manual_seed(0)
    for path, module in timm.create_model(name).named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            conv = isinstance(module, nn.Conv2d)
            std = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5 if conv else 0.02
            count = module.weight.numel()
            assert off((module.weight.mean().item(), module.weight.std().item(), count), (0, std, 10**9)) < SIGMAS, path
            assert module.bias is None or not module.bias.any()
