"""The depthwise convolution: torch's layer in all that it computes, with another way to its weights' gradient."""

import copy
import warnings

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from zoo import create, every_staged_family, image

from timm_mobilevit_zoo.models import _blocks
from timm_mobilevit_zoo.models._blocks import depthwise, depthwise_conv

CHANNELS_LAST = torch.channels_last
COMPILES = hasattr(torch.compiler, "is_exporting")  # torch 2.7; older ones keep torch's layer


@pytest.fixture
def calls(monkeypatch):
    """Each call of our own gradient: without this, the tests would pass on torch's alone."""
    seen, ours = [], _blocks._Depthwise.apply
    monkeypatch.setattr(_blocks._Depthwise, "apply", lambda *args: seen.append(args) or ours(*args))
    return seen


class Caller(nn.Module):
    """Calls a depthwise convolution as blocks do."""

    def __init__(self, *args):
        super().__init__()
        self.conv = depthwise_conv(*args)

    def forward(self, x):
        return self.conv(x) if torch.jit.is_scripting() else depthwise(self.conv, x)


def pair(dim, *args):
    """Our call and torch's layer in float64 with the same weights."""
    ours = Caller(dim, *args)
    return ours, copy.deepcopy(ours.conv).double()


def gradients(layer, x, grad):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(x)
    out.backward(grad.to(out.dtype))
    return [out, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(5, 1, 1), (5, 2, 1), (7, 1, 2), (9, 2, 2), (5, 3, 4)])
@pytest.mark.parametrize(
    ("batch", "dim", "height", "width"), [(3, 5, 14, 9), (1, 32, 7, 7), (2, 17, 1, 4), (2, 16, 31, 30)]
)
def test_gradients_are_torchs(calls, kernel_size, stride, dilation, batch, dim, height, width):
    torch.manual_seed(0)
    ours, theirs = pair(dim, kernel_size, stride, dilation)
    x = torch.randn(batch, dim, height, width).contiguous(memory_format=CHANNELS_LAST)
    out = theirs(x.double())
    assert out.shape[2:] == (-(-height // stride), -(-width // stride))
    grad = torch.randn_like(out)
    expected = gradients(theirs, x.double(), grad)
    for found, right in zip(gradients(ours, x, grad), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5 * right.abs().max().item())
    assert len(calls) == 1
    assert ours.conv.weight.grad.is_contiguous()


SMALL = [
    (side, kernel_size, stride, padding)
    for side in ((1, 1), (1, 4), (2, 2), (3, 2), (6, 6))
    for kernel_size, stride in ((5, 1), (7, 1), (11, 1), (5, 2), (7, 4))
    for padding in (0, 1, kernel_size // 2)
    if min(side) + 2 * padding >= kernel_size
]


@pytest.mark.parametrize(("side", "kernel_size", "stride", "padding"), SMALL)
def test_gradients_of_many_small_maps(monkeypatch, side, kernel_size, stride, padding):
    """Maps smaller than the kernel, and several images to a call with a last one of fewer."""
    monkeypatch.setattr(_blocks, "_CACHED", 3 * 6 * side[0] * side[1])
    x = torch.randn(8, 6, *side, dtype=torch.float64).contiguous(memory_format=CHANNELS_LAST)
    out = [(cells + 2 * padding - kernel_size) // stride + 1 for cells in side]
    grad, how = torch.randn(8, 6, *out, dtype=torch.float64), ([stride] * 2, [padding] * 2, [1, 1])
    weight = torch.empty(6, 1, kernel_size, kernel_size, dtype=torch.float64)
    right = torch.ops.aten.convolution_backward(grad, x, weight, None, *how, False, [0, 0], 6, (False, True, False))
    torch.testing.assert_close(_blocks._weight_gradient(x, grad, weight.shape[2:], *how), right[1])


def test_gradients_of_some_of_a_maps_channels(calls):
    torch.manual_seed(0)
    ours, theirs = pair(4, 7)
    x = torch.randn(3, 12, 9, 8).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    twin = x.detach().double().requires_grad_()
    for layer, whole in ((ours, x), (theirs, twin)):
        layer(whole[:, 4:8]).square().sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(x.grad.double(), twin.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.conv.weight.grad.double(), theirs.weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_second_gradients_and_forward_mode(monkeypatch, bias):
    """In float64, where numbers can be compared with differences."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    weight = torch.randn(3, 1, 5, 5, dtype=torch.double, requires_grad=True)
    shift = torch.randn(3, dtype=torch.double, requires_grad=True) if bias else None

    def call(x, weight, shift):
        return _blocks._Depthwise.apply(x, weight, shift, (2, 2), (2, 2), (1, 1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        assert gradcheck(call, (x, weight, shift), check_forward_ad=True)
        assert gradgradcheck(call, (x, weight, shift))


def test_gradients_of_each_image(calls):
    torch.manual_seed(0)
    layer = Caller(4, 5)
    weights = dict(layer.named_parameters())
    x = torch.randn(3, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST)

    def loss(weights, one):
        return (
            torch.func.functional_call(layer, weights, (one[None].contiguous(memory_format=CHANNELS_LAST),))
            .square()
            .sum()
        )

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for i, one in enumerate(x):
        right = torch.autograd.grad(loss(weights, one), list(weights.values()))
        for grads, grad in zip(found.values(), right, strict=True):
            torch.testing.assert_close(grads[i], grad)
    assert calls


@pytest.mark.skipif(not COMPILES, reason="older torch keeps its own layer, and does not compile these transforms")
def test_transforms_of_a_compiled_layer_are_torchs():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST)
    layer = Caller(4, 5)
    weight = layer.conv.weight

    def loss(weight, one):
        return torch.func.functional_call(layer, {"conv.weight": weight}, one[None]).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    right = of_each(weight, x)
    found = torch.compile(of_each, backend="aot_eager", fullgraph=True)(weight, x)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5 * float(right.detach().abs().max()))


def test_what_stays_torchs(calls):
    layer = Caller(8, 5)
    x = torch.randn(2, 8, 6, 6)
    last = x.contiguous(memory_format=CHANNELS_LAST)
    layer(x)
    Caller(8, 3)(last)
    layer.double()(last.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(last).dtype == torch.bfloat16
    with torch.inference_mode():
        layer(last)
    torch.jit.trace(layer, last)(last)
    torch.testing.assert_close(torch.jit.script(layer)(last), layer.requires_grad_(False)(last))
    assert not calls
    layer.requires_grad_(True)(last)
    assert len(calls) == 1


def test_forward_mode_through_a_layer(calls):
    layer = Caller(4, 5)
    x, direction = (torch.randn(2, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST) for _ in range(2))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, layer.conv._conv_forward(direction, layer.conv.weight, None))
    assert calls


class Backend:
    """Runs graphs as they are and keeps the last backward one's calls."""

    def __init__(self):
        self.found = []
        self.compile = aot_autograd(fw_compiler=self.run, bw_compiler=self.keep)

    def run(self, graph, _):
        return make_boxed_func(graph.forward)

    def keep(self, graph, _):
        self.found = [(str(node.target), node.args) for node in graph.graph.nodes if node.op == "call_function"]
        return make_boxed_func(graph.forward)

    def torchs(self):
        """Gradients of weights that torch computes: the second of three."""
        return sum("convolution_backward" in name and args[-1][1] for name, args in self.found)

    def ours(self):
        return sum("depthwise_weight_gradient" in name for name, _ in self.found)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(5, 1, 1), (7, 2, 1)])
def test_gradients_of_a_compiled_layer(kernel_size, stride, dilation):
    torch.manual_seed(0)
    torch._dynamo.reset()
    ours, theirs = pair(8, kernel_size, stride, dilation)
    backend = Backend()
    compiled = torch.compile(ours, backend=backend.compile, fullgraph=True)
    for batch in (1, 3, 4):  # torch compiles the third for any size of batch
        x = torch.randn(batch, 8, 9, 7).contiguous(memory_format=CHANNELS_LAST)
        grad = torch.randn_like(theirs(x.double()))
        for layer in (ours, theirs):
            layer.zero_grad()
        expected = gradients(theirs, x.double(), grad)
        found = gradients(compiled, x, grad.float().contiguous(memory_format=CHANNELS_LAST))
        for one, right in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), right, rtol=1e-5, atol=1e-5 * right.abs().max().item())
        assert (backend.torchs(), backend.ours()) == ((0, int(batch > 1)) if COMPILES else (1, 0))
    backend.found = []
    gradients(compiled, x[:2], grad[:2].float())
    assert not backend.found, "another size of batch was compiled anew"


def test_exported_graphs_have_torchs_layer():
    exported = torch.export.export(Caller(8, 5), (torch.randn(2, 8, 6, 6).to(memory_format=CHANNELS_LAST),))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == ["aten.conv2d.default"]


def test_an_empty_batch_has_gradients():
    layer = Caller(4, 5)
    layer(torch.empty(0, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST)).sum().backward()
    assert not layer.conv.weight.grad.any()


WATCHERS = {
    "forward hook": lambda conv, see: conv.register_forward_hook(lambda *_: see()),
    "forward pre-hook": lambda conv, see: conv.register_forward_pre_hook(lambda *_: see()),
    "backward hook": lambda conv, see: conv.register_full_backward_hook(lambda *_: see()),
    "backward pre-hook": lambda conv, see: conv.register_full_backward_pre_hook(lambda *_: see()),
    "hook of all modules": lambda conv, see: register_module_forward_hook(lambda m, *_: see() if m is conv else None),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_whoever_watches_a_layer_sees_it_called(calls, watcher):
    layer, seen = Caller(8, 5), []
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    expected = gradients(layer, x, torch.ones(2, 8, 6, 6))
    assert len(calls) == 1
    layer.zero_grad()
    handle = WATCHERS[watcher](layer.conv, lambda: seen.append(1))
    try:
        found = gradients(layer, x, torch.ones(2, 8, 6, 6))
    finally:
        handle.remove()
    assert (len(seen), len(calls)) == (1, 1)
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4)


def test_what_stands_in_a_layers_place_is_called(calls):
    layer, x = Caller(4, 5), torch.randn(2, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST)
    layer.conv.forward = lambda x: x + 1
    assert torch.equal(layer(x), x + 1)
    layer.conv = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    parametrize.register_parametrization(layer.conv, "weight", nn.Tanh())
    torch.testing.assert_close(layer(x), layer.conv(x))
    layer.conv = nn.Identity()
    assert layer(x) is x
    assert not calls


@every_staged_family
def test_eager_quantisation_finds_every_convolution(name):
    model = create(name).train()
    model.qconfig = get_default_qat_qconfig("x86")
    convs = [m for m in prepare_qat(model).modules() if isinstance(m, nn.Conv2d)]
    assert convs
    assert all(hasattr(conv, "weight_fake_quant") for conv in convs)


@every_staged_family
def test_gradients_of_a_network(name, monkeypatch):
    """With the layer's own way and with torch's: the same, and the networks with large weights take ours."""
    network = create(name, num_classes=3).eval()
    twin = copy.deepcopy(network)
    large = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    large = {m.weight for m in large if min(m.kernel_size) >= 5 and m.groups == m.out_channels}
    x, used, ours = image(), [], _blocks._Depthwise.apply
    monkeypatch.setattr(_blocks._Depthwise, "apply", lambda *args: used.append(args) or ours(*args))
    network(x).square().sum().backward()
    calls = len(used)
    assert {args[1] for args in used} == large
    monkeypatch.setattr(_blocks, "_HAS_KERNEL", False)
    twin(x).square().sum().backward()
    assert len(used) == calls
    expected = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
    found = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
