"""`fuse(prepack="auto")`: which form is taken, told and remembered. Clocks are the tests' own: nothing is timed."""

import itertools
import json
import logging
import os

import pytest
import timm
import torch
from torch import nn
from zoo import KINDS, create, own_image

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.common.progress import showing
from timm_mobilevit_zoo.fusion import fastest
from timm_mobilevit_zoo.models.probe import seed_weights


class Form(nn.Module):
    """Takes as long as it is told to: more the first time, and while others run."""

    def __init__(self, clock, *seconds, out=1.0):
        super().__init__()
        self.clock, self.left, self.out = clock, itertools.chain(seconds, itertools.repeat(seconds[-1])), out
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.clock.now += next(self.left)
        if isinstance(self.out, Exception):
            raise self.out
        return x.mean((2, 3)) * self.out


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(fastest.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "fuse"


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(fastest, "_clock", own)
    return own


SIZE = 3, 8, 8


def taken(forms, model=None, size=SIZE):
    """Name of the form that is taken."""
    made = {name: (lambda form=form: form) for name, form in forms.items()}
    found = fastest.fastest(made, model or Net(), size)
    return next(name for name, form in forms.items() if form is found)


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        ((0.05, 0.010), (0.09, 0.005), "second"),
        ((0.05, 0.010), (0.001, 0.020), "first"),  # a first call is not like the others
        ((0.05, 0.010), (0.05, 0.010), "first"),
        ((0.05, 0.010), (0.05, 0.0098), "first"),  # as good as no difference
        ((0.05, 0.010), (0.05, 0.0096), "second"),
        ((0.05, 0.030, 0.030, 0.010), (0.05, 0.012), "first"),  # others kept the machine busy
    ],
)
def test_the_fastest_is_taken_and_the_first_wins_ties(clock, first, second, best):
    assert taken({"first": Form(clock, *first), "second": Form(clock, *second)}) == best


def test_forms_take_turns_within_their_time(clock):
    forms = {"first": Form(clock, 0.04), "second": Form(clock, 0.03), "third": Form(clock, 0.02)}
    began = clock.now
    assert taken(forms) == "third"
    assert clock.now - began <= fastest.BUDGET
    assert [form.calls for form in forms.values()] == [1 + fastest.ROUNDS] * 3
    slow = {name: Form(clock, 0.2) for name in ("first", "second", "third")}
    began = clock.now
    assert taken(slow, Net(5)) == "first"
    assert clock.now - began <= fastest.BUDGET
    assert [form.calls for form in slow.values()] == [2] * 3


@pytest.mark.parametrize(("seconds", "calls"), [(0.6, [1, 1, 0]), (0.4, [1, 1, 1]), (5.0, [1, 0, 0])])
def test_what_is_slow_is_tried_once_or_not(clock, cache, seconds, calls):
    forms = {"first": Form(clock, seconds), "second": Form(clock, seconds / 2), "third": Form(clock, seconds)}
    assert taken(forms) == ("second" if calls[1] else "first")
    assert [form.calls for form in forms.values()] == calls
    assert cache.exists() == bool(calls[1]), "what was not tried is not remembered"


@pytest.mark.parametrize("out", [1.1, float("nan"), RuntimeError("no such layout")])
def test_a_form_that_computes_otherwise_is_never_taken(clock, out):
    wrong = Form(clock, 0.001, out=out)
    assert taken({"first": Form(clock, 0.03), "second": wrong, "third": Form(clock, 0.02, out=1 + 1e-5)}) == "third"
    assert wrong.calls == 1


def test_what_the_first_has_against_an_image_is_told(clock):
    with pytest.raises(RuntimeError, match="too small"):
        taken({"first": Form(clock, 0.1, out=RuntimeError("too small")), "second": Form(clock, 0.1)})


def test_a_choice_is_remembered(clock, cache, caplog):
    caplog.set_level(logging.INFO, "timm_mobilevit_zoo")
    forms = {"first": Form(clock, 0.03), "second": Form(clock, 0.02)}
    assert taken(forms) == "second"
    calls = [form.calls for form in forms.values()]
    assert taken(forms) == "second"
    assert [form.calls for form in forms.values()] == calls, "nothing is tried again"
    threads = torch.get_num_threads()
    assert [record.message for record in caplog.records] == [
        f"fuse: Net at 8 x 8 px, threads: {threads}: second (first 30 ms, second 20 ms)",
        f"fuse: Net at 8 x 8 px, threads: {threads}: second, as tried before",
    ]
    (file,) = cache.iterdir()
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["form"] == "second"
    assert told["ms"] == pytest.approx({"first": 30, "second": 20})


CHANGES = {
    "cpu": lambda patch: patch.setattr(fastest, "cpu_name", lambda: "another"),
    "instructions": lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another"),
    "threads": lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
    "torch": lambda patch: patch.setattr(torch, "__version__", "2.999"),
    "version": lambda patch: patch.setattr(fastest, "__version__", "99"),
    "nothing": lambda patch: None,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_choice_is_for_a_machine(clock, monkeypatch, what):
    forms = {"first": Form(clock, 0.03), "second": Form(clock, 0.02)}
    assert taken(forms) == "second"
    CHANGES[what](monkeypatch)
    calls = forms["first"].calls
    assert taken(forms) == "second"
    assert (forms["first"].calls > calls) == (what != "nothing")


@pytest.mark.parametrize(
    ("model", "size"), [(Net(5), SIZE), (Net().double(), SIZE), (nn.Sequential(nn.ReLU()), SIZE), (Net(), (3, 8, 9))]
)
def test_a_choice_is_for_a_network_a_type_and_a_size(clock, model, size):
    forms = {"first": Form(clock, 0.03), "second": Form(clock, 0.02)}
    taken(forms)
    calls = forms["first"].calls
    taken(forms, model, size)
    assert forms["first"].calls > calls


BROKEN = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "null": "null",
    "no key": '{"form": "second"}',
    "deep": "[" * 50_000,
    "binary": "\0\xff",
    "no word": '{"key": null, "form": ["second"]}',
}


@pytest.mark.parametrize("text", [*BROKEN, "of another", "no such form", "a number", "a folder"])
def test_a_damaged_cache_is_none(clock, cache, text):
    forms = {"first": Form(clock, 0.03), "second": Form(clock, 0.02)}
    taken(forms)
    (file,) = cache.iterdir()
    told = json.loads(file.read_text(encoding="utf-8"))
    changed = {
        "of another": {"key": told["key"] | {"cpu": "x"}},
        "no such form": {"form": "x"},
        "a number": {"form": 3},
    }
    if text == "a folder":
        file.unlink()
        file.mkdir()
    elif text in changed:
        file.write_text(json.dumps(told | changed[text]), encoding="utf-8")
    else:
        file.write_bytes(BROKEN[text].encode("latin-1"))
    calls = forms["first"].calls
    assert taken(forms) == "second"
    assert forms["first"].calls > calls
    if text != "a folder":
        assert json.loads(file.read_text(encoding="utf-8")) == told, "it is put right"


def test_a_cache_that_cannot_be_written_to_is_no_error(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("taken", encoding="utf-8")
    monkeypatch.setenv(fastest.VARIABLE, str(tmp_path / "file"))
    assert taken({"first": Form(clock, 0.03), "second": Form(clock, 0.02)}) == "second"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(fastest.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(fastest.Path, "home", homeless)
    assert taken({"first": Form(clock, 0.03), "second": Form(clock, 0.02)}) == "second"


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert fastest.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(fastest.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fastest.cache_folder() == tmp_path / "xdg" / "timm_mobilevit_zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(fastest.Path, "home", lambda: tmp_path)
    assert fastest.cache_folder() == tmp_path / ".cache" / "timm_mobilevit_zoo"


def test_a_command_says_that_it_tries(clock, capsys):
    forms = {"first": Form(clock, 0.03), "second": Form(clock, 0.02)}
    with showing():
        taken(forms)
        taken(forms)
    assert capsys.readouterr().err.count("trying which form of Net at 8 x 8 px, threads: ") == 1


def test_random_numbers_stay_as_they_were(clock):
    model = Net()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    taken({"first": Form(clock, 0.03), "second": Form(clock, 0.02)}, model)
    assert torch.equal(before, torch.get_rng_state())


def test_the_size_is_the_config_s_or_what_is_given():
    model = timm.create_model("mobilevitv3_xxs", in_chans=1)
    assert fastest.image_size(model, None) == (1, *model.pretrained_cfg["input_size"][1:])
    assert fastest.image_size(model, 64) == (1, 64, 64)
    assert fastest.image_size(Net(), (32, 48)) == (3, 32, 48)
    with pytest.raises(ValueError, match="model=Net has no config that tells its images' size: give size="):
        fastest.image_size(Net(), None)
    for size in (0, -3, (3,), (3, 4, 5), (8, 0), (8.0, 8)):
        with pytest.raises(ValueError, match=r"size=.* must be a side, or height and width, in pixels"):
            fastest.image_size(Net(), size)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="prepack='fast' must be True, False or 'auto'"):
        fuse(Net().eval(), prepack="fast")
    with pytest.raises(ValueError, match="size=64 goes with prepack='auto'"):
        fuse(Net().eval(), prepack=True, size=64)
    with pytest.raises(ValueError, match="give size="):
        fuse(Net().eval(), prepack="auto")


def chosen(monkeypatch, name):
    """Have a form be taken without a try."""
    seen = {}

    def fake(forms, model, size):
        seen.update(forms=list(forms), size=size)
        return forms[name]()

    monkeypatch.setattr("timm_mobilevit_zoo.fusion.fold.fastest", fake)
    return seen


@pytest.mark.parametrize("form", ["fused", "channels_last", "prepacked"])
@torch.no_grad()
def test_every_form_computes_the_same(monkeypatch, form):
    model, x = seed_weights(create(KINDS[0])), own_image(KINDS[0])
    seen = chosen(monkeypatch, form)
    fast = fuse(model, prepack="auto", size=tuple(x.shape[2:]))
    assert seen == {"forms": ["fused", "channels_last", "prepacked"], "size": (3, *x.shape[2:])}
    assert (fast(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()
    weights = [module.weight for module in fast.modules() if type(module) is nn.Conv2d]
    assert bool(weights) == (form != "prepacked")
    last = [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]
    assert all(last) == (form != "fused")


def test_without_onednn_or_in_another_type_nothing_is_prepacked(monkeypatch):
    seen = chosen(monkeypatch, "fused")
    fuse(Net().double().eval(), prepack="auto", size=8)
    assert seen["forms"] == ["fused", "channels_last"]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fuse(Net().eval(), prepack="auto", size=8)
    assert seen["forms"] == ["fused", "channels_last"]


def test_beyond_a_cpu_nothing_is_tried(monkeypatch):
    monkeypatch.setattr("timm_mobilevit_zoo.fusion.fold.fastest", lambda *args: pytest.fail("it was tried"))
    fast = fuse(Net().to("meta").eval(), prepack="auto", size=8)
    assert isinstance(fast.norm, nn.Identity)


@torch.no_grad()
def test_the_form_that_is_taken_here_computes_the_same(cache):
    model = seed_weights(create(KINDS[0]))
    fast = fuse(model, prepack="auto", size=64)
    assert len(os.listdir(cache)) <= 1  # none, where the machine was so busy that there was no time
    for x in (torch.rand(1, 3, 64, 64), torch.rand(3, 3, 64, 96)):
        assert (fast(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()
    assert type(fuse(model, prepack="auto", size=64)) is type(model)
