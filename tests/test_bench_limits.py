"""What the CPU reaches at best, and where a network's time goes. Nothing here asks how long anything took."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from timm_mobilevit_zoo import bench, fuse
from timm_mobilevit_zoo.bench import layers, limits, report
from timm_mobilevit_zoo.bench import run as bench_run
from timm_mobilevit_zoo.bench.runners import build
from timm_mobilevit_zoo.models.probe import gmacs

FOUND = {"gflop_s": {"fp32": {"convolution": 50.0, "product": 40.0}}, "copy_gb_s": [[1, 20.0], [256, 5.0]]}
SMALL = {"img_size": (32,), "rounds": 5, "device": "cpu", "threads": (1,)}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, value in {"ROUND": 1e-4, "WARM_UP": 0.0}.items():
        monkeypatch.setattr(bench_run, name, value)
    for name, value in {"LONG": 0.0, "CONVS": ((3, 4, 8),), "PRODUCTS": (8,), "COPIES": (0.01, 0.02)}.items():
        monkeypatch.setattr(limits, name, value)


class Clock:
    """Seconds of calls, in turns, that pass nowhere else."""

    def __init__(self, *seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, call, count, device):
        call()
        self.calls += 1
        return self.seconds[(self.calls - 1) % len(self.seconds)]


def test_the_best_of_all_shapes_and_calls_is_the_limit(monkeypatch):
    monkeypatch.setattr(limits, "CONVS", ((3, 4, 8), (1, 16, 16)))
    monkeypatch.setattr(limits, "PRODUCTS", (8, 16))
    monkeypatch.setattr(limits, "seconds_of", Clock(3e-6, 1e-6, 2e-6))
    found = limits.limits(("fp32", "int8"))  # of 2 * 16**2 * 16**2 and 2 * 16**3 operations, in a microsecond
    assert found["gflop_s"] == {"fp32": {"convolution": 131.1, "product": 8.2}}
    assert found["copy_gb_s"] == [[mib, round(mib * 2**20 / 1e3, 1)] for mib in (0.01, 0.02)]


def test_every_way_that_torch_has_is_tried(monkeypatch):
    layer, x = nn.Conv2d(4, 4, 1), torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        plain, laid_out = (call() for call in limits._ways(layer, x))
        assert torch.allclose(plain, laid_out, atol=1e-5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert len(list(limits._ways(layer, x))) == 1


@pytest.mark.parametrize("taken", [False, True])
def test_bfloat16_is_measured_where_it_is_taken(monkeypatch, taken):
    monkeypatch.setattr(limits, "_takes", lambda dtype: taken or dtype == "fp32")
    monkeypatch.setattr(limits, "_ways", lambda layer, x: [lambda: layer(x)])  # this CPU's oneDNN may refuse it
    found = limits.limits(("fp32", "bf16"))
    assert list(found["gflop_s"]) == ["fp32", *["bf16"] * taken]
    assert (limits.best_of(found, "bf16") is not None) == taken


def test_random_numbers_stay_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    limits.limits()
    assert torch.equal(before, torch.get_rng_state())


def test_the_rate_of_a_copy_is_that_of_its_size():
    assert [limits.copy_rate(FOUND, size) for size in (1, 2**20, 2**20 + 1, 2**40)] == [20, 20, 5, 5]
    assert limits.best_of(FOUND, "fp32") == 50
    assert limits.best_of(FOUND, "int8") is limits.best_of(None, "fp32") is None


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Layers(nn.Module):
    """A layer of each kind, on maps of 8 channels and 4 x 4 cells."""

    def __init__(self):
        super().__init__()
        self.dense, self.grouped, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2), None
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm, self.act, self.linear = nn.BatchNorm2d(8), nn.GELU(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.depthwise(self.grouped(self.dense(x))))
        x = F.max_pool2d(self.act(x) + x, 1).flatten(2).transpose(1, 2)
        return self.linear(x.softmax(-1)).mean(1)


def test_each_kind_has_its_operations_and_bytes():
    network, x = Layers().eval(), torch.randn(1, 3, 4, 4)
    with torch.inference_mode():
        found = layers.by_kind(lambda: network(x), FOUND, "fp32")
    rows, cells = found["kinds"], 16
    assert list(rows) == list(layers.KINDS)
    macs = cells * (3 * 8 + 8 * 4 * 9 + 8 * 5)
    assert rows[layers.DENSE]["gflop"] == pytest.approx(2 * macs / 1e9, rel=1e-3)
    assert rows[layers.DEPTHWISE]["gflop"] == pytest.approx(2 * cells * 8 * 9 / 1e9, rel=1e-3)
    map_bytes = 4 * 8 * cells
    assert rows[layers.DEPTHWISE]["mb"] == pytest.approx((2 * map_bytes + 4 * 8 * 9) / 1e6, rel=1e-3)
    assert rows["activation"]["mb"] == rows["softmax"]["mb"] == pytest.approx(2 * map_bytes / 1e6, rel=1e-3)
    assert rows[layers.MOVES]["mb"] == pytest.approx(3 * map_bytes / 1e6, rel=1e-3), "views move nothing"
    assert [rows[kind]["calls"] for kind in layers.KINDS] == [3, 1, 1, 1, 1, 3, 2]
    assert rows["activation"]["bound_ms"] == pytest.approx(2 * map_bytes / 20e9 * 1e3, rel=1e-3)
    assert rows[layers.DENSE]["bound_ms"] >= 2 * macs / 50e9 * 1e3
    assert all(row["ms"] > 0 for row in rows.values())


def test_without_operations_no_rate_bounds():
    network, x = nn.Conv2d(4, 4, 1), torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    none = FOUND | {"gflop_s": {}}
    found = layers.by_kind(lambda: network.bfloat16()(x), none, "bf16")["kinds"][layers.DENSE]
    assert found["bound_ms"] == pytest.approx(2 * (2 * 4 * 64 + 20) / 20e9 * 1e3, rel=1e-3)


PRODUCTS = {
    "linear": (lambda x: F.linear(x, torch.ones(5, 6)), 2 * 4 * 6 * 5),
    "matmul": (lambda x: x @ torch.ones(6, 5), 2 * 4 * 6 * 5),
    "addmm": (lambda x: torch.addmm(torch.ones(5), x[0], torch.ones(6, 5)), 4 * 6 * 5),
    "einsum": (lambda x: torch.einsum("bnc, cd -> bnd", x, torch.ones(6, 5)), 2 * 4 * 6 * 5),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, torch.ones(2, 3, 6), torch.ones(2, 3, 5)),
        2 * 4 * 3 * 11,
    ),
    "transposed": (lambda x: F.conv_transpose1d(x, torch.ones(4, 7, 3)), 2 * 4 * 6 * 7 * 3),
}


@pytest.mark.parametrize("what", PRODUCTS)
def test_multiply_adds_of_products(what):
    call, macs = PRODUCTS[what]
    with layers._Watch() as watch, torch.inference_mode():
        call(torch.ones(2, 4, 6))
    dense = [work for work in watch.works if work.flop]
    assert sum(work.flop for work in dense) == 2 * macs
    assert {work.kind for work in dense} == {layers.DENSE}


def test_an_expanded_tensor_is_read_once():
    assert layers._size(torch.ones(3, 1).expand(3, 100)) == 12
    assert layers._size(torch.ones(3, 2, dtype=torch.bfloat16).t()) == 12


@pytest.mark.parametrize("form", ["eager", "fuse", "prepack"])
@pytest.mark.parametrize("name", ["cloformer_xxs", "mobilevitv3_xxs"])
def test_a_network_s_operations_are_its_multiply_adds(name, form):
    network, side = build(name, 64), 64
    macs = gmacs(build(name, 64).to("meta"), (3, side, side))
    if form != "eager":
        network = fuse(network, prepack=form == "prepack")
    with layers._Watch() as watch, torch.inference_mode():
        network(torch.randn(1, 3, side, side))
    assert sum(work.flop for work in watch.works) / 2e9 == pytest.approx(macs, rel=0.05)  # fuse merges branches
    assert any(work.kind == layers.DEPTHWISE for work in watch.works)


def test_the_command_s_table_tells_the_limit_and_the_kinds(monkeypatch):
    monkeypatch.setattr(bench_run, "best_rates", lambda dtypes: FOUND)
    rows = bench.bench(["mobilevitv3_xxs"], backend=("eager", "prepack"), layers=True, **SMALL)
    assert [row["error"] for row in rows] == [None, None]
    text = bench.table(rows)
    assert "limits: fp32 50.0 GFLOP/s in dense convolutions, 40.0 in matrix products; memory 5.0 GB/s" in text
    assert "of the limit" in text
    for row in rows:
        assert f"mobilevitv3_xxs {row['backend']}, by kind of layer" in text
        found = row["layers"]
        *kinds, between, whole = report.layers_text("name", found)[1:]
        assert len(kinds) == len(found["kinds"])
        assert between.startswith("between layers")
        assert f"{found['ms']:.3f}" in whole
    plain = bench.bench(["mobilevitv3_xxs"], limits=False, **SMALL)[0]
    assert (plain["limits"], plain["of_limit"], plain["layers"]) == (None, None, None)
    assert plain["gflop_s"] > 0
    assert "limits:" not in bench.table([plain])


def test_what_does_not_apply_is_left_empty(monkeypatch):
    monkeypatch.setattr(bench_run, "best_rates", lambda dtypes: FOUND)
    trained, narrow = bench.bench(
        [f"{__name__}:net"], mode=("train", "eval"), dtype=("bf16",), batch_size=(2,), layers=True, **SMALL
    )
    assert (trained["gflop_s"], trained["of_limit"], trained["layers"]) == (None, None, None)
    assert narrow["gflop_s"] > 0
    assert narrow["of_limit"] is None, "the limit of bfloat16 was not measured"
    assert report.rate_cells(narrow) == [f"{narrow['gflop_s']:.1f}", ""]
    assert report.rate_cells({"error": "no such thing"}) == ["", ""]
    assert narrow["layers"]["kinds"]
    unknown = {"gmacs": None, "images_per_s": 3.0}
    assert bench_run._rates(unknown, bench_run.Candidate("a", "eager", "contiguous", "fp32"), FOUND) == {}
    assert math.isfinite(trained["ms"]["median"])


def test_limits_are_measured_once_for_a_number_of_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_run, "best_rates", lambda dtypes: seen.append((torch.get_num_threads(), dtypes)) or FOUND)
    bench.bench([f"{__name__}:net"], batch_size=(1, 2), **SMALL | {"threads": (1, 2)})
    assert seen == [(1, ("fp32",)), (2, ("fp32",))]
