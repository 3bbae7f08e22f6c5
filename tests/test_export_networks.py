"""Networks as callers have them, all of which are left as they were; and files that belong together."""

import json
import logging
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from zoo import create

from timm_mobilevit_zoo import export, fuse
from timm_mobilevit_zoo.common.files import claiming
from timm_mobilevit_zoo.common.quiet import quiet
from timm_mobilevit_zoo.export import checked, formats
from timm_mobilevit_zoo.export.compare import compare
from timm_mobilevit_zoo.export.format import Format
from timm_mobilevit_zoo.maps import attention_maps
from timm_mobilevit_zoo.models.copies import copied, twin
from timm_mobilevit_zoo.models.probe import seed_weights

NAME = "vit_nano_patch4_32"


class Same:
    """A format that needs no converter: it keeps the network, and runs that."""

    def __init__(self):
        self.network = None

    def write(self, network, x, path, dynamic):
        self.network = network
        path.write_text("the model")
        path.with_suffix(".bin").write_text("its weights")

    def run(self, path, threads=0):
        return lambda images: self.network(torch.from_numpy(images)).numpy()


@pytest.fixture
def same(monkeypatch):
    one = Same()
    monkeypatch.setitem(formats.FORMATS, "ncnn", Format(".param", "ncnn", (), (), one.write, one.run, (".bin",)))
    return one


def parametrised(network):
    nn.utils.parametrizations.weight_norm(network.blocks[0].attn.qkv)
    nn.utils.parametrizations.spectral_norm(network.blocks[1].mlp.fc1)
    return network.eval()


def with_old_weight_norm(network):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(network.blocks[0].attn.qkv)
    return network


def double(network):
    network.pretrained_cfg |= {"mean": np.array([0.5] * 3, np.float32), "std": np.array([0.5] * 3, np.float32)}
    return network.double()


KINDS = {
    "channels_last": lambda network: network.to(memory_format=torch.channels_last),
    "half": lambda network: network.half(),
    "double, arrays in its config": double,
    "averaged": ModelEmaV3,
    "in DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "parametrised": parametrised,
    "old weight norm": with_old_weight_norm,
    "tied weights": lambda network: setattr(network.blocks[1], "norm1", network.blocks[0].norm1) or network,
}


def looks(network):
    tensors = {name: (t.dtype, t.device, t.stride(), t.clone()) for name, t in network.state_dict().items()}
    modules = [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    return tensors, modules


def same_looks(a, b):
    same_tensors = all(a[0][key][:3] == b[0][key][:3] and torch.equal(a[0][key][3], b[0][key][3]) for key in a[0])
    return a[0].keys() == b[0].keys() and same_tensors and a[1] == b[1]


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_is_written_and_left_as_it_is(same, tmp_path, kind):
    network = KINDS[kind](seed_weights(create(NAME, num_classes=3)))
    before = looks(network)
    found = export.to_ncnn(network, str(tmp_path / "file.param"))
    assert same_looks(looks(network), before)
    assert json.loads((tmp_path / "file.param.json").read_text()) == found
    assert found["output"]["shape"] == [1, 3]
    assert {(p.dtype, p.is_contiguous()) for p in same.network.parameters()} == {(torch.float32, True)}


@pytest.mark.parametrize("kind", ["averaged", "in DataParallel", "parametrised", "old weight norm"])
def test_any_network_is_fused_and_left_as_it_is(kind):
    network = KINDS[kind](seed_weights(create(NAME, num_classes=3)))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        before = looks(network)
        fused = fuse(network)
        assert same_looks(looks(network), before)
        torch.testing.assert_close(fused(x), expected)
        torch.testing.assert_close(network(x), expected)


def test_layers_with_computed_weights_can_be_copied():
    layer = with_old_weight_norm(seed_weights(create(NAME))).train()
    layer(torch.randn(1, 3, 32, 32))  # now a weight has a history
    assert attention_maps(layer, torch.randn(1, 3, 32, 32))
    assert not [hook for module in copied(layer).modules() for hook in module._forward_pre_hooks]


def test_a_twin_has_the_same_tensors_and_modes_of_its_own():
    network = create(NAME).train()
    own = twin(network)
    assert all(a is b for a, b in zip(own.parameters(), network.parameters(), strict=True))
    assert not any(module.training for module in own.modules())
    assert all(module.training for module in network.modules())


def test_arguments_of_other_libraries(same, tmp_path):
    found = export.export(
        NAME,
        format="ncnn",
        output=tmp_path / "file.param",
        size=np.array([32, 32]),
        tolerance=np.float32(0.5),
        pretrained=False,
    )
    assert json.loads((tmp_path / "file.param.json").read_text()) == found
    assert found["input"]["shape"] == [1, 3, 32, 32]


def test_global_defaults_do_not_matter(same, tmp_path):
    network = create(NAME)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            export.to_ncnn(network, str(tmp_path / "file.param"))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_replaced_head_has_no_names(same, tmp_path):
    network = seed_weights(create(NAME, num_classes=3))
    network.pretrained_cfg["label_names"] = np.array(["a", "b", "c"])
    assert export.to_ncnn(network, str(tmp_path / "a.param"))["labels"] == ["a", "b", "c"]
    network.pretrained_cfg["label_names"] = {"1": "b", "0": "a", "2": "c"}
    assert export.to_ncnn(network, str(tmp_path / "b.param"))["labels"] == ["a", "b", "c"]
    network.head = nn.Linear(network.head.in_features, 5).eval()
    assert export.to_ncnn(network, str(tmp_path / "c.param"))["labels"] is None


def changed(name, value):
    network = create(NAME, num_classes=3)
    with torch.no_grad():
        network.get_parameter(name).fill_(value)
    return network


def tied_to_one(network):
    network.head.weight.data.zero_()
    network.head.bias.data.fill_(0.25)
    return network


def overflowing():
    network = changed("head.weight", 1e38)
    network.blocks[-1].mlp.fc2.bias.data.fill_(1e38)
    return network


def partly_training():
    network = create(NAME)
    network.blocks[1].train()
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: changed("head.bias", torch.nan), "has weights that are not finite, in head.bias"),
        (lambda: changed("head.bias", torch.inf), "has weights that are not finite, in head.bias"),
        (overflowing, "the network's own logits are not finite"),
        (lambda: changed("head.bias", 3e38), "logits are constant: all of them are 3e.38"),
        (lambda: tied_to_one(create(NAME, num_classes=3)), "logits are constant: all of them are 0.25"),
        (lambda: create(NAME).to("meta"), "is on the meta device: it has no weights"),
        (lambda: create(NAME, features_only=True), "returns a list, not logits"),
        (partly_training, r"in training mode \(blocks.1 is\)"),
    ],
)
def test_refused_before_any_conversion(same, tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        export.to_ncnn(network(), str(tmp_path / "file.param"))
    assert same.network is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("eager", "found", "message"),
    [
        ([[1.0, torch.nan]], [[1.0, torch.nan]], "own logits are not finite"),
        ([[1.0, torch.inf]], [[1.0, torch.inf]], "own logits are not finite"),
        ([[2.0, 2.0]], [[2.0, 2.0]], "own logits are constant: all of them are 2"),
        ([[1.0, 2.0]], [[1.0, torch.nan]], "the written file returns logits that are not finite"),
        ([[1.0, 2.0]], [[1.0, -torch.inf]], "the written file returns logits that are not finite"),
    ],
)
def test_what_cannot_be_compared_is_said(eager, found, message):
    with pytest.raises(ValueError, match=message):
        compare(lambda x: torch.tensor(eager), lambda x: np.array(found, np.float32), [torch.zeros(1)])


def test_a_single_logit_is_compared_with_itself():
    found = compare(lambda x: torch.tensor([[2.0]]), lambda x: np.array([[2.5]], np.float32), [torch.zeros(1)])
    assert (found["error"], found["rms"]) == (0.25, 0.25)


def held(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_death_between_two_names_leaves_no_new_file_beside_an_old_one(same, tmp_path, monkeypatch):
    """Whatever file operation is the last one."""
    file, network = tmp_path / "file.param", create(NAME, num_classes=3)
    real, steps = {"replace": Path.replace, "unlink": Path.unlink}, []

    class Killed(BaseException):
        pass

    def counted(what, last):
        def step(path, *args, **kwargs):
            if path.suffix != ".lock" and tmp_path in (path.parent, *(target.parent for target in args)):
                steps.append(path)
                if len(steps) > last:
                    raise Killed
            return real[what](path, *args, **kwargs)

        return step

    export.to_ncnn(network, str(file))
    old, last = held(tmp_path), 0
    network.head.bias.data += 1
    while True:
        for name, text in old.items():
            (tmp_path / name).write_text(text.replace("the model", "an old model"))
        steps.clear()
        with monkeypatch.context() as patched:
            for what in real:
                patched.setattr(Path, what, counted(what, last))
            try:
                export.to_ncnn(network, str(file), overwrite=True)
                break
            except Killed:
                pass
        now = held(tmp_path)
        is_new = now["file.param"] == "the model"
        assert not is_new or now.get("file.param.json") != old["file.param.json"]
        last += 1
    assert last > 3
    assert held(tmp_path)["file.param"] == "the model"
    assert held(tmp_path).keys() == old.keys() == {"file.param", "file.bin", "file.param.json"}


def test_two_that_write_one_file_are_one_too_many(same, tmp_path):
    file, network = tmp_path / "file.param", create(NAME)
    with claiming(file, "output"), pytest.raises(ValueError, match=r"output='.*file.param' is being written: process"):
        export.to_ncnn(network, str(file))
    with claiming(file, "output"):
        export.to_ncnn(network, str(tmp_path / "other.param"))
    export.to_ncnn(network, str(file))
    empty = dict(size=None, dynamic=(), images=[], backend=None, calibration=[])
    task = checked.Task("ncnn", file, **empty, precision="fp32", tolerance=1.0, overwrite=False)
    with pytest.raises(ValueError, match="exists; choose another"):
        checked.write_checked(network, task)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_parts_of_dead_processes_go_at_the_next_run(same, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".file.param.{dead.pid}-0@{socket.gethostname()}.part"
    left.mkdir()
    (left / "file.param").write_text("half")
    alive = tmp_path / f".other.param.1-0@{socket.gethostname()}.part"
    alive.mkdir()
    export.to_ncnn(create(NAME), str(tmp_path / "file.param"))
    assert not left.exists()
    assert alive.exists()


def test_exports_in_threads_take_turns_at_what_is_the_process_s():
    """While one is quiet another waits, and then all is as it was."""
    before = logging.root.manager.disable, list(warnings.filters)
    inside, done = threading.Event(), []

    def second():
        with quiet():
            done.append(inside.is_set())

    thread = threading.Thread(target=second)

    def first():
        with quiet():
            thread.start()
            inside.set()
            assert not done
            raise InterruptedError

    with pytest.raises(InterruptedError):
        first()
    thread.join()
    assert done == [True]
    assert (logging.root.manager.disable, list(warnings.filters)) == before
