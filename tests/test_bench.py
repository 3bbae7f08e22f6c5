"""`bench`: turns, ratios formed round by round, nothing wrong timed, rows whole. How long it took is not asked."""

import json
import math
import re
import sys

import openvino
import pytest
import timm
import torch
from torch import nn
from zoo import KINDS

from timm_mobilevit_zoo import bench
from timm_mobilevit_zoo.bench import report, runners
from timm_mobilevit_zoo.bench import run as bench_run
from timm_mobilevit_zoo.bench.runners import (
    Candidate,
    Runner,
    Setting,
    build,
    deviation,
    moved,
    peak_mib,
    prepare,
    reference,
)
from timm_mobilevit_zoo.cli import main
from timm_mobilevit_zoo.models.probe import gmacs
from timm_mobilevit_zoo_cli.checks import LEAST_ROUNDS

NAME, SIDE = "mobilevitv3_xxs", 32
LIMITS = {"gflop_s": {"fp32": {"convolution": 50.0, "product": 40.0}}, "copy_gb_s": [[1, 20.0], [256, 5.0]]}
SMALL = {"img_size": (SIDE,), "rounds": 5}
CPU = torch.device("cpu")


class Net(nn.Module):
    """Two logits, and what a test wants to be odd about them."""

    def __init__(self, odd=lambda x: x):
        super().__init__()
        self.conv, self.norm, self.odd = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), odd

    def forward(self, x):
        return self.odd(self.norm(self.conv(x)).mean((2, 3)))


class SteepInFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1.1 if grad.dtype == torch.float32 else 1)


def only_float32(odd):
    return lambda: Net(lambda x: odd(x) if x.dtype == torch.float32 else x)


right = Net
shifted, endless, longer = (
    only_float32(lambda x: x + 0.5),
    only_float32(lambda x: x / 0),
    only_float32(lambda x: x[:, :1]),
)
steep = only_float32(SteepInFloat32.apply)
tied, no_tensor, no_network = lambda: Net(lambda x: x @ torch.eye(2)), lambda: Net(lambda x: [x]), lambda: 3
dropping = lambda: nn.Sequential(Net(), nn.Dropout(0.5), timm.layers.DropPath(0.5))  # noqa: E731
number = 3


def own(name):
    return f"{__name__}:{name}"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench_run, "ROUND", 1e-4)
    monkeypatch.setattr(bench_run, "WARM_UP", 0.0)
    monkeypatch.setattr(bench_run, "best_rates", lambda dtypes: LIMITS)


def test_ratios_are_formed_round_by_round():
    # The ratio of the medians would be 2 / 4.
    assert bench.compare([1, 10, 2], [1, 5, 4]) == {"median": 1, "q1": 0.75, "q3": 1.5, "shown": False}
    assert bench.compare([3, 6, 9, 30], [2, 4, 6, 20]) == {"median": 1.5, "q1": 1.5, "q3": 1.5, "shown": True}
    assert bench.compare([2, 4, 6], [4, 8, 12])["shown"]
    with pytest.raises(ValueError, match="zip"):
        bench.compare([1, 2], [1, 2, 3])


def test_a_ratio_whose_quartiles_hold_one_says_so():
    assert bench.ratio_text(bench.compare([1, 2, 3, 4], [1, 1, 1, 1])) == "2.50 (1.75 to 3.25)"
    told = "no difference shown: 1.00 (0.75 to 1.50)"
    assert bench.ratio_text(bench.compare([1, 10, 2], [1, 5, 4])) == told
    assert bench.ratio_text(bench.compare([1, 1, 2], [1, 1, 1])).startswith("no difference shown: 1.00 (1.00 to")
    assert bench.ratio_text(None) == ""


class Bar:
    """Counts what a progress bar would show."""

    done = 0

    def update(self, steps=1):
        self.done += steps


@pytest.mark.parametrize(("seconds", "rounds"), [(1e9, 7), (1e-9, LEAST_ROUNDS)])
def test_candidates_take_turns_within_rounds_and_time(monkeypatch, seconds, rounds):
    calls, timed, bar = [lambda: "a", lambda: "b", lambda: "c"], [], Bar()

    def fake(call, count, device):
        timed.append((call(), count))
        return {"a": 0.5e-4, "b": 0.4e-4, "c": 7e-4}[call()] * (1 + len(timed))

    monkeypatch.setattr(bench_run, "_seconds", fake)
    times, counts = bench_run.take_turns(calls, CPU, 7, seconds, bar)
    warm = len(timed) - 3 * rounds
    assert all(count == 1 for _, count in timed[:warm])
    assert [name for name, _ in timed[warm:]] == list("abc") * rounds
    assert [count for _, count in timed[warm:]] == counts * rounds
    assert [len(found) for found in times] == [rounds] * 3
    assert bar.done == 7


def test_a_round_has_as_many_calls_as_fill_it(monkeypatch):
    monkeypatch.setattr(bench_run, "ROUND", 0.05)
    monkeypatch.setattr(bench_run, "_seconds", lambda call, count, device: call())
    assert bench_run.take_turns([lambda: 0.02, lambda: 0.001, lambda: 3.0], CPU, 5, 60, Bar())[1] == [3, 50, 1]


def test_a_call_is_timed_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bench_run.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 0.25

    assert bench_run._seconds(call, 4, CPU) == 0.25
    assert now == [101.0]


def test_rows_are_whole(tmp_path):
    path = tmp_path / "rows.json"
    rows = bench.bench(
        [NAME, own("right")],
        against=NAME,
        backend=("eager", "fuse"),
        batch_size=(1, 2),
        memory_format=("channels_last",),
        output=str(path),
        **SMALL,
    )
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(rows)) == rows
    assert [row["error"] for row in rows] == [None] * len(rows) == [None] * 2 * (1 + 2 * 2)
    assert len({frozenset(row) for row in rows}) == 1
    assert [row["batch_size"] for row in rows] == [1] * 5 + [2] * 5
    for start in range(0, len(rows), 5):
        first, *others = rows[start : start + 5]
        assert (first["model"], first["backend"], first["memory_format"]) == (NAME, "eager", "channels_last")
        assert first["ratio"] is None
        for row in others:
            assert row["against"] == f"{NAME} eager channels_last"
            assert row["ratio"] == bench.compare(first["round_ms"], row["round_ms"])
        for row in (first, *others):
            assert row["ms"] == bench.quartiles(row["round_ms"])
            assert row["images_per_s"] == pytest.approx(1000 * row["batch_size"] / row["ms"]["median"])
            assert len(row["round_ms"]) == 5
            assert row["reference"] == "float64"
            assert 0 < row["deviation"] < 1e-4
            assert row["memory_mib"] > 0
            assert row["limits"] == LIMITS
            assert row["gflop_s"] == pytest.approx(2 * row["gmacs"] * row["images_per_s"], rel=1e-5)
            assert row["of_limit"] == pytest.approx(row["gflop_s"] / 50, rel=1e-3)
            assert row["layers"] is None
            assert row["others"] is None or row["others"] >= 0
    with torch.device("meta"):
        network = timm.create_model(NAME)
    assert rows[0]["params_m"] * 1e6 == sum(parameter.numel() for parameter in network.parameters())
    assert rows[0]["gmacs"] == gmacs(network, (3, SIDE, SIDE))
    assert rows[0]["machine"]["cpu"]
    assert rows[0]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_images_of_several_sizes_each_in_turn():
    rows = bench.bench([own("right")], **SMALL | {"img_size": (SIDE, (SIDE, 2 * SIDE))})
    assert [row["img_size"] for row in rows] == [SIDE, (SIDE, 2 * SIDE)]
    assert rows[1]["gmacs"] > rows[0]["gmacs"]
    assert f"eval, {SIDE} x {2 * SIDE} px, batch 1" in bench.table(rows)


def test_threads_are_set_and_set_back(monkeypatch):
    def count(candidate, setting, network, x):
        raise ValueError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr(bench_run, "prepare", count)
    before = torch.get_num_threads()
    rows = bench.bench([own("right")], threads=(3, 2), **SMALL)
    assert [(row["threads"], row["error"]) for row in rows] == [(3, "3 threads"), (2, "2 threads")]
    assert torch.get_num_threads() == before
    assert bench.bench([own("right")], **SMALL)[0]["threads"] == before


def test_a_training_step_and_bfloat16():
    rows = bench.bench([own("right")], mode=("eval", "train"), batch_size=(2,), dtype=("fp32", "bf16"), **SMALL)
    assert [(row["mode"], row["dtype"], row["error"]) for row in rows] == [
        (mode, dtype, None) for mode in ("eval", "train") for dtype in ("fp32", "bf16")
    ]
    assert all(1e-4 < row["deviation"] < 0.1 for row in rows[1::2])
    assert rows[0]["moved_mib"] == 2 * rows[1]["moved_mib"]
    assert rows[2]["moved_mib"] is None


def test_a_step_trains_and_keeps_the_weights():
    network = build(own("right"), SIDE)
    before = [parameter.clone() for parameter in network.parameters()]
    runner = prepare(
        Candidate("", "eager", "contiguous", "fp32"),
        Setting("train", SIDE, 2, 1, CPU),
        network,
        torch.randn(2, 3, SIDE, SIDE),
    )
    logits, gradients = runner.results()
    assert logits.shape == (2, 2)
    assert gradients.abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, runner.network.parameters(), strict=True))
    assert runner.network.training
    assert not network.training


WRONG = {
    "shifted": r"wrong result: logits are off by [\d.e+-]+ of the largest, over 0.001",
    "endless": "wrong result: logits are not finite",
    "longer": r"wrong result: logits of shape \(1, 1\), not \(1, 2\)",
    "no_tensor": "the output is a list, not logits",
    "no_network": r"a int was returned, not a torch.nn.Module",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_never_timed(name):
    wrong, fine = bench.bench([own(name), own("right")], **SMALL)
    for row, message in ((wrong, WRONG[name]), (bench.bench([own("right"), own(name)], **SMALL)[1], WRONG[name])):
        assert re.match(message, row["error"])
        assert not {"ms", "round_ms", "images_per_s"} & row.keys()
        assert row["ratio"] is None
    assert fine["error"] is None
    assert fine["ratio"] is None, "there is nothing to compare with"
    assert "error: " + wrong["error"] in bench.table([wrong, fine])


def test_wrong_gradients_are_wrong():
    (row,) = bench.bench([own("steep")], mode=("train",), batch_size=(2,), **SMALL)
    assert row["error"].startswith("wrong result: gradients are off by 1.0e-01 of the largest")
    assert bench.bench([own("steep")], **SMALL)[0]["error"] is None


def test_a_network_that_is_tied_to_float32_is_compared_with_that():
    (row,) = bench.bench([own("tied")], **SMALL)
    assert (row["error"], row["reference"], row["deviation"]) == (None, "float32", 0)


def test_deviation_is_a_part_of_the_largest():
    expected = [torch.tensor([10.0, -100.0])]
    assert deviation([torch.tensor([10.05, -100.0])], expected, "fp32") == pytest.approx(5e-4, rel=1e-4)
    with pytest.raises(ValueError, match=r"logits are off by 5.0e-03 of the largest, over 0.001"):
        deviation([torch.tensor([10.5, -100.0])], expected, "fp32")
    with pytest.raises(ValueError, match="wrong result: logits are not finite"):
        deviation([torch.tensor([math.nan, -100.0])], expected, "bf16")


def test_dropout_is_off_and_statistics_are_not_those_of_a_new_network():
    network = build(own("dropping"), SIDE)
    assert (network[1].p, network[2].drop_prob) == (0, 0)
    norms = [module for module in build("cloformer_xxs", 64).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.running_mean.abs().max() > 0 and norm.momentum == 0.1 for norm in norms)


@pytest.mark.parametrize("backend", ["compile", "fuse+compile"])
def test_compile_gets_the_network_or_its_fused_copy(monkeypatch, backend):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: seen.append((network, options)) or network)
    x = torch.randn(1, 3, SIDE, SIDE)
    runner = prepare(
        Candidate("", backend, "contiguous", "fp32"), Setting("eval", SIDE, 1, 1, CPU), build(own("right"), SIDE), x
    )
    ((network, options),) = seen
    assert options == {"dynamic": False}
    assert isinstance(network.norm, nn.Identity if "fuse" in backend else nn.BatchNorm2d)
    assert runner.network is network


@pytest.mark.parametrize("backend", runners.EXPORTED)
def test_exported_networks(backend):
    first, row = bench.bench([own("right")], against=own("right"), backend=(backend,), batch_size=(3,), **SMALL)
    assert row["error"] is first["error"] is None
    assert 0 < row["deviation"] < 1e-5
    assert row["ratio"] == bench.compare(first["round_ms"], row["round_ms"])
    assert row["memory_mib"] is None
    assert backend in row["versions"]


def test_an_exported_network_is_measured_once_in_each_type_that_it_has():
    options = {"names": ["a", "a"], "against": "", "backend": ["eager", "prepack", "openvino"], "cuda_graphs": False}
    options |= {"memory_format": ["contiguous", "channels_last"], "dtype": ["bf16", "fp32", "int8"]}
    found = bench_run._candidates(options)
    assert found[:7] == found[7:]  # a name that was given twice is measured twice
    assert [str(one) for one in found[:7]] == [
        "a eager bf16",
        "a eager",
        "a eager channels_last bf16",
        "a eager channels_last",
        "a prepack",
        "a openvino",
        "a openvino bf16",
    ]
    graphs = bench_run._candidates(
        options | {"backend": ["fuse"], "dtype": ["fp16"], "cuda_graphs": True, "against": "b"}
    )
    assert [str(one) for one in graphs[:3]] == ["b eager fp16", "a fuse fp16", "a fuse graph fp16"]


class Widens(nn.Module):
    def forward(self, x):
        return x.repeat(1, 64, 1, 1).mean((2, 3))


def test_memory_is_what_a_call_allocates():
    x = torch.randn(1, 3, 64, 64)
    network = Widens()
    assert peak_mib(Runner(lambda: network(x), network), CPU) == pytest.approx(
        3, rel=1e-2
    )  # 3 * 64 * 64 * 64 * 4 bytes
    assert peak_mib(Runner(lambda: x, network), CPU) == 0
    assert peak_mib(Runner(lambda: network(x), None), CPU) is None


def test_moved_counts_weights_and_maps_once():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5, bias=False)).to("meta")
    assert moved(network, (8, 8)) == (3 * 4 + 4 + 5 * 4 * 64, (3 + 4) * 64 + 4 * 64 + 5)


BAD = {
    "`names` is empty": {"names": []},
    "names='no_such_model' is neither module:function nor a model of timm's": {"names": ["no_such_model"]},
    "against='also_none' is neither": {"against": "also_none"},
    "names='no_such_module:f' cannot be imported: No module": {"names": ["no_such_module:f"]},
    rf"names='{__name__}:none' cannot be imported: .*no attribute 'none'": {"names": [f"{__name__}:none"]},
    rf"names='{__name__}:number' is not a function": {"names": [f"{__name__}:number"]},
    "batch_size=1 0 must be at least 1 each": {"batch_size": (1, 0)},
    "img_size=0 must": {"img_size": (0,)},
    "threads=0 must": {"threads": (0,)},
    "`mode` is empty": {"mode": ()},
    "rounds=4 must be at least 5": {"rounds": 4},
    "seconds=0 must be above 0": {"seconds": 0},
    "seconds=nan must be above 0": {"seconds": math.nan},
    "device='meta' must be cpu, or cuda": {"device": "meta"},
    "dtype=fp16 is for a GPU": {"dtype": ("fp32", "fp16"), "device": "cpu"},
    "`cuda_graphs=True` needs device=cuda": {"cuda_graphs": True, "device": "cpu"},
    "backend=openvino is measured on a CPU in fp32": {"backend": ("openvino",), "dtype": ("bf16",)},
    "dtype=int8 is what export writes for backend=onnxruntime": {"dtype": ("fp32", "int8"), "device": "cpu"},
    "backend=onnxruntime is measured on a CPU in fp32": {"backend": ("onnxruntime",), "dtype": ("int8",)},
    "backend=fuse does not train": {"backend": ("compile", "fuse"), "mode": ("train",)},
    r"plot='plot.doc' must end in one of \..*png": {"plot": "plot.doc"},
    "`plot` needs mode=eval and a name with a claimed": {"plot": "plot.png", "names": [own("right")]},
    "`layers=True` needs `limits=True`": {"layers": True, "limits": False},
    "`layers=True` needs mode=eval": {"layers": True, "mode": ("train",)},
    "`layers=True` is for a CPU, and for one of backend=eager,": {"layers": True, "backend": ("compile",)},
    "output='.*' exists; choose another": {"output": __file__},
    "output='none/rows.json' needs a folder": {"output": "none/rows.json"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named_before_any_work(monkeypatch, message):
    monkeypatch.setattr(bench_run, "build", lambda *args: pytest.fail("it began"))
    with pytest.raises((ValueError, FileNotFoundError), match="^" + message):
        bench.bench(**{"names": [NAME]} | BAD[message])


@pytest.mark.parametrize("missing", [*runners.EXPORTED, "onnx"])
def test_a_missing_back_end_names_the_pip_command(monkeypatch, missing):
    for name in {*runners.EXPORTED, "onnx"} - {missing}:
        monkeypatch.setitem(sys.modules, name, sys)  # any module
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"^{missing} is not installed: pip install .*\[export\]'"):
        bench.bench([NAME], backend=tuple(runners.EXPORTED), device="cpu")


def test_int8_is_measured_beside_fp32():
    rows = bench.bench([NAME], backend=("eager", "onnxruntime"), dtype=("int8", "fp32"), device="cpu", **SMALL)
    assert [(row["backend"], row["dtype"], row["error"]) for row in rows] == [
        ("eager", "fp32", None),
        ("onnxruntime", "fp32", None),
        ("onnxruntime", "int8", None),
    ]
    assert rows[1]["deviation"] < 1e-4 < rows[2]["deviation"] < 0.5
    assert rows[2]["moved_mib"] < rows[1]["moved_mib"]
    assert rows[2]["ms"]["median"] > 0


def test_openvino_is_measured_in_16_bits_where_the_cpu_has_them():
    rows = bench.bench([KINDS[1]], backend=("eager", "openvino"), dtype=("fp32", "bf16"), device="cpu", **SMALL)
    assert [(row["backend"], row["dtype"]) for row in rows] == [
        *[("eager", "fp32"), ("eager", "bf16")],
        *[("openvino", "fp32"), ("openvino", "bf16")],
    ]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert rows[2]["deviation"] < 1e-4 < rows[3]["deviation"] < 0.2
    else:
        assert rows[3]["error"] == "this CPU has no bf16 in OpenVINO: it takes f32"


def test_the_picture_has_the_claims(tmp_path):
    path = tmp_path / "plot.png"
    rows = bench.bench(["cloformer_xxs", own("right")], plot=str(path), **SMALL)
    assert path.read_bytes().startswith(b"\x89PNG")
    axis = bench.draw(rows).axes[0]
    (points,) = axis.collections
    assert points.get_offsets().tolist() == [[rows[0]["ms"]["median"], report.claimed("cloformer_xxs")]]
    assert [text.get_text() for text in axis.texts] == ["cloformer_xxs"]
    assert "the authors' claim" in axis.get_ylabel()
    with pytest.raises(ValueError, match=r"^plot='.*' exists; choose another, or give `overwrite=True`"):
        bench.bench(["cloformer_xxs"], plot=str(path), **SMALL)


def test_the_reference_is_of_the_mode():
    network, x = build(own("right"), SIDE), torch.randn(4, 3, SIDE, SIDE)
    evaluated, trained = (reference(network, x, Setting(mode, SIDE, 4, 1, CPU))[0] for mode in ("eval", "train"))
    assert len(evaluated) == 1
    assert len(trained) == 2
    assert evaluated[0].dtype == torch.float64
    assert not torch.allclose(evaluated[0], trained[0])  # BatchNorm takes the batch's statistics
    assert not network.training


def test_the_command(capsys, tmp_path):
    path = tmp_path / "rows.json"
    command = ["bench", own("right"), own("shifted"), "--img-size", "32", "--rounds", "5", "--batch-size", "1", "2"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "-o", str(path)])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert [line.split(",")[2] for line in out.splitlines() if line.startswith("eval")] == [" batch 1", " batch 2"]
    assert out.count("error: wrong result") == 2
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 4
    with pytest.raises(SystemExit) as stopped:
        main([*command[:2], *command[3:]])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit) as stopped:
        main(["bench", NAME, "--backend", "tvm"])
    assert stopped.value.code == 2
    assert "--backend 'tvm' must be eager, fuse" in capsys.readouterr().err
