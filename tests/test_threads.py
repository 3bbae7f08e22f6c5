"""What threads and callers share stays as it is, whatever we do meanwhile, and at whatever point an error ends it."""

import contextlib
import os
import threading

import numpy as np
import pytest
import torch
from torch import nn
from zoo import create

from timm_mobilevit_zoo import fuse
from timm_mobilevit_zoo.bench import bench
from timm_mobilevit_zoo.bench import run as bench_run
from timm_mobilevit_zoo.maps import attention_maps
from timm_mobilevit_zoo.models.probe import gmacs
from timm_mobilevit_zoo.train import predict as train_predict

NAME = "vit_nano_patch4_32"


def elsewhere(function):
    """Return what a function returns in another thread, while this one waits for it; raise what it raises."""
    found = []

    def call():
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    value, error = found[0]
    if error:
        raise error
    return value


class Meanwhile(nn.Module):
    """A network during whose forward pass something else happens."""

    def __init__(self, happens):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.happens = happens

    def forward(self, x):
        self.happens()
        return self.norm(self.conv(x))


def test_other_threads_call_modules_while_one_fuses():
    other, x, call = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), torch.randn(3, 2), nn.Module.__call__
    compiled = torch.compile(other, backend="eager")
    expected, seen = other(x), []

    def happens():
        seen.append((nn.Module.__call__, elsewhere(lambda: other(x)), elsewhere(lambda: compiled(x))))

    fused = fuse(Meanwhile(happens).eval())
    assert type(fused) is Meanwhile
    assert type(fused.norm) is nn.Identity
    assert [one[0] for one in seen] == [call]
    assert all(torch.equal(found, expected) for found in seen[0][1:])


def test_two_that_fuse_at_once_take_turns():
    call, getattr_ = nn.Module.__call__, nn.Module.__getattr__
    models = [create("mobilevitv3_050", num_classes=5) for _ in range(2)]
    second = threading.Thread(target=lambda: found.append(fuse(models[1])))
    found = []
    # The second begins while the first is in the middle of it.
    fuse(Meanwhile(lambda: second.start()).eval())
    second.join()
    assert len(found) == 1
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, getattr_)


def test_an_error_while_fusing_leaves_nothing():
    def fail():
        raise KeyError("stop")

    model, call = Meanwhile(fail).eval(), nn.Module.__call__
    with pytest.raises(ValueError, match=r"cannot be traced by .*: 'stop'"):
        fuse(model)
    assert type(model.conv) is nn.Conv2d
    assert nn.Module.__call__ is call
    assert fuse(Meanwhile(lambda: None).eval())


def test_two_that_record_maps_at_once_get_their_own():
    model, images = create(NAME).train(), [torch.randn(1, 3, 32, 32) for _ in range(2)]
    alone = [attention_maps(model, x) for x in images]
    found, modes = {}, []

    def meanwhile(module, args):  # in the middle of the first, all of the second
        if 1 not in found:
            found[1] = None
            found[1] = elsewhere(lambda: attention_maps(model, images[1]))
            modes.extend(one.training for one in model.modules())

    handle = model.blocks[1].register_forward_pre_hook(meanwhile)
    found[0] = attention_maps(model, images[0])
    handle.remove()
    for i, expected in enumerate(alone):
        assert found[i].keys() == expected.keys()
        assert all(torch.equal(found[i][key], expected[key]) for key in expected)
    assert all(modes)
    assert all(module.training for module in model.modules())
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))


class Collector:
    """Whose methods are hooks, and which cannot be copied."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), []

    def keep(self, module, args):
        self.seen.append(type(module))


def test_a_callers_hooks_go_on_to_serve_the_caller():
    model, collector = create(NAME), Collector()
    model.blocks[1].register_forward_pre_hook(collector.keep)
    attention_maps(model, torch.randn(2, 3, 32, 32))
    assert collector.seen == [type(model.blocks[1])]
    fuse(model)(torch.randn(2, 3, 32, 32))
    assert len(collector.seen) > 1


def test_predicting_changes_no_mode_of_a_network_in_use(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    model, modes = create(NAME, num_classes=5).train(), []
    model.blocks[0].register_forward_hook(lambda *_: modes.extend(one.training for one in model.modules()))
    train_predict.predict(model, [str(tmp_path / "a.png")])
    assert modes
    assert all(modes)


def test_counting_changes_no_switch_of_torch():
    def switches():
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()

    with torch.device("meta"):
        model = create(NAME)
    before, seen = switches(), []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(switches()))
    gmacs(model, (3, 32, 32))
    assert seen == [before]


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


def failing():
    """A network that fails where it is timed, not where it is made ready."""
    network = net()
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) > 8:
            raise MemoryError("none left")

    network[1].register_forward_hook(hook)
    return network


SMALL = dict(img_size=(8,), rounds=5, seconds=0.01, device="cpu", threads=(1,))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench_run, "ROUND", 1e-9)
    monkeypatch.setattr(bench_run, "WARM_UP", 1e-9)
    monkeypatch.setattr(bench_run, "best_rates", lambda dtypes: {"gflop_s": {}, "copy_gb_s": [[1, 1.0]]})


def test_an_error_while_timing_keeps_the_other_rows(quick, tmp_path):
    names = [f"{__name__}:failing", f"{__name__}:net"]
    bad, good = bench(names, output=str(tmp_path / "rows.json"), **SMALL)
    assert bad["error"] == "MemoryError: none left"
    assert "ms" not in bad
    assert (good["error"], good["ratio"]) == (None, None)
    assert len(good["round_ms"]) == 5


def test_a_batch_that_no_memory_holds_is_a_row(quick):
    huge, fine = bench([f"{__name__}:net"], batch_size=(2**31 - 1, 1), **SMALL)
    assert huge["error"]
    assert fine["error"] is None


def test_a_benchmark_leaves_the_process_as_it_was(quick, monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.get_num_threads(), dict(os.environ)
    bench([f"{__name__}:net", f"{__name__}:failing", NAME], **SMALL | {"img_size": (32,)})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), dict(os.environ)) == before[1:]


def test_benchmarks_take_turns(quick, monkeypatch):
    measure, inside = bench_run._measure, []
    started = threading.Event()

    def second():
        started.set()
        bench([f"{__name__}:net"], **SMALL)

    thread = threading.Thread(target=second)

    def alone(*args):
        inside.append(threading.get_ident())
        if len(inside) == 1:
            thread.start()
            assert started.wait(60)
        rows = measure(*args)
        inside.append(threading.get_ident())
        return rows

    monkeypatch.setattr(bench_run, "_measure", alone)
    bench([f"{__name__}:net"], **SMALL)
    thread.join(60)
    assert inside[0] == inside[1] != inside[2] == inside[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "resnet18"}, "names='resnet18' must be a list"),
        ({"backend": "eager"}, "backend='eager' must be a list"),
        ({"backend": ("fastest",)}, "backend='fastest' must be one of eager, fuse"),
        ({"mode": ("evaluation",)}, "mode='evaluation' must be one of eval, train"),
        ({"dtype": ("fp8",)}, "dtype='fp8' must be one of fp32"),
        ({"memory_format": ("nhwc",)}, "memory_format='nhwc' must be one of contiguous"),
        ({"batch_size": 1}, "batch_size=1 must be a list"),
        ({"batch_size": (True,)}, "batch_size=True must be a whole number"),
        ({"seconds": float("nan")}, "seconds=nan must"),
        ({"rounds": 5.5}, "rounds=5.5 must"),
    ],
)
def test_mistyped_arguments_of_a_benchmark(options, message):
    with pytest.raises(ValueError, match=message):
        bench(**{"names": [f"{__name__}:net"], **SMALL} | options)


def test_numbers_of_other_libraries(quick):
    (row,) = bench([f"{__name__}:net"], **SMALL | {"img_size": np.array([8]), "batch_size": [np.int64(2)]})
    assert (type(row["img_size"]), type(row["batch_size"])) == (int, int)


def test_letters_that_no_font_has_and_formulas_are_drawn(tmp_path, recwarn):
    from PIL import Image

    from timm_mobilevit_zoo.maps import draw, draw_file

    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("$\\frac{注意}$", create(NAME).blocks[0])
            self.pretrained_cfg = create(NAME).pretrained_cfg

        def forward(self, x):
            return next(self.children())(x.flatten(2).mT[:, :, :1].expand(-1, -1, 48))

    figure = draw(Strange().eval(), torch.randn(1, 3, 8, 8))
    with contextlib.suppress(UserWarning):  # the caller's own affair
        figure.savefig(tmp_path / "strange.png")
    recwarn.clear()
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    draw_file(NAME, tmp_path / "a.png", output=tmp_path / "maps.png", img_size=np.int64(32))
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
