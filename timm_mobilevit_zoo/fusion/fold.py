"""An inference copy of a network in which norms and scales are part of the layers beside them."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any, Literal

import torch
from timm.layers import BatchNormAct2d, DropPath
from timm.models import get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from timm_mobilevit_zoo.models.copies import copied, unwrapped
from timm_mobilevit_zoo.models.traits import formed, is_scale, scale_of, scaled

from .fastest import fastest, image_size
from .prepack import ACTIVATIONS, check_prepack, packed
from .trace import trace

__all__ = ["fuse"]

# By exact type, except for what may stand in the way: a subclass may compute anything.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)
_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    DropPath,
)  # what does nothing in eval mode


def fuse(
    model: nn.Module, *, prepack: bool | Literal["auto"] = False, size: int | tuple[int, int] | None = None
) -> nn.Module:
    """Return a copy for inference in which every norm and scale that can be is folded into a convolution or linear.

    What is folded: what layers say of themselves (`models.traits`: branches that are one convolution in evaluation, or
    scales, as in CloFormer's gate), a BatchNorm behind a convolution, or behind a linear layer whose channels are then
    moved to where a map has them (the algebra is `torch.nn.utils.fusion`'s), a BatchNorm in front of a convolution
    without padding in the same block, and a layer scale. Outputs and feature levels are equal up to
    rounding, where optional arguments of `forward` are left out. The copy is of the same class and answers the same
    calls; its state dict is another, so it is no place to load weights into, and it is not for training.

    Args:
        model: A network in evaluation mode: one of ours, or of timm's; also in DistributedDataParallel or an average of
            weights. Layers inside modules that timm hides from tracing stay as they are, and so does a layer that has
            hooks or whose tensors are used outside of it; parametrised weights become plain ones. Other threads may use
            the model meanwhile.
        prepack: Also lay out the weights of 2-d convolutions and linear layers as oneDNN wants them, and compute with
            them the activations behind them. Such a copy is for float32 on a CPU: it is not moved, copied, saved,
            exported, scripted or compiled, and it computes no gradients. With `"auto"` the copy is of the form that is
            the fastest here: as it would be without, with its weights in channels_last, or prepacked where that is
            possible. These are tried in turns for up to two seconds, on one image and with the threads that torch has.
            The choice is remembered for this processor, number of threads, type, torch, network and size, in
            `~/.cache/timm_mobilevit_zoo` or `$TIMM_MOBILEVIT_ZOO_CACHE`, and told to Python's logging. Beyond a CPU
            nothing is tried.
        size: Side of the square image that forms are tried on, or its height and width, in pixels: for
            `prepack="auto"`; that of the model's config if not given.

    Raises:
        ValueError: For a model in training mode, one that is compiled or scripted, or one that torch.fx cannot trace;
            with `prepack=True` also for one that is not float32 on a CPU, or for a torch without oneDNN; for a size
            that is none, or that has no use, and where none is known.
    """
    if prepack not in (True, False, "auto"):
        raise ValueError(f"prepack={prepack!r} must be True, False or 'auto'")
    prepack = prepack if prepack == "auto" else bool(prepack)
    if size is not None and prepack != "auto":
        raise ValueError(f"size={size!r} goes with prepack='auto'")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ValueError(f"model is a {type(model).__name__}: fuse first, then compile or script what fuse returns")
    model = unwrapped(model)
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"model is in training mode ({training[0]} is): call model.eval() first")
    tries = prepack == "auto"
    if prepack and not tries:
        check_prepack(model)
    image = image_size(model, size) if tries else None
    fused = formed(copied(model), "fused")
    _Folder(fused).fold()
    if image and all(tensor.device.type == "cpu" for tensor in model.state_dict().values()):
        return fastest(_forms(model, fused), model, image)
    return _prepacked(fused) if prepack and not tries else fused


def _forms(model: nn.Module, fused: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each form in which a fused network may run, by name; the first is the network as it is."""
    last: Any = torch.channels_last
    forms: dict[str, Callable[[], nn.Module]] = {
        "fused": lambda: fused,
        "channels_last": lambda: copied(fused).to(memory_format=last),
    }
    with suppress(ValueError):
        check_prepack(model)
        forms["prepacked"] = lambda: _prepacked(copied(fused))
    return forms


def _prepacked(fused: nn.Module) -> nn.Module:
    _Folder(fused).prepack()
    return fused.requires_grad_(False)


def _is_leaf(module: nn.Module) -> bool:
    """Tell whether a module is folded as a whole, or stays as one."""
    return is_scale(module) or isinstance(module, (*_NORMS, *_NOTHING, *get_notrace_modules()))


class _Folder:
    """Walks a graph in order of execution and folds in place."""

    def __init__(self, model: nn.Module) -> None:
        given = inspect.signature(model.forward).parameters.items()
        # Or else they are traced, too.
        defaults = {name: each.default for name, each in given if each.default is not each.empty}
        try:
            graph = trace(model, defaults, _is_leaf)
        except Exception as error:
            raise ValueError(f"model={type(model).__name__} cannot be traced by torch.fx: {error}") from error
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self.nodes = [node for node in graph.nodes if node.op == "call_module"]
        self.calls = Counter(id(self.modules[str(node.target)]) for node in self.nodes)
        self.read = {id(attrgetter(str(node.target))(model)) for node in graph.nodes if node.op == "get_attr"}

    def fold(self) -> None:
        for node in self.nodes:
            module = self.modules[str(node.target)]
            if not self._is_free(module) or not node.args:
                continue
            if type(module) in _NORMS:
                self._fold_norm(node, module)
            elif is_scale(module):
                self._fold_scale(node, *scale_of(module))

    def prepack(self) -> None:
        for node in self.nodes:
            layer = self.modules[str(node.target)]
            if self._is_seen(layer):
                continue
            act_node = self._next_of_same_block(node) if self._is_free(layer) else None  # each call has its own
            act = self.modules[str(act_node.target)] if act_node else None
            if act_node and type(act) not in ACTIVATIONS:
                act_node = act = None
            if new := packed(layer, act):
                self._replace(node, new)
                if act_node:
                    self._replace(act_node, nn.Identity())

    def _fold_norm(self, node: fx.Node, norm: Any) -> None:
        if norm.running_mean is None:  # it takes the batch's own mean
            return
        behind, layer = self._layer(node.args[0], 1)
        rest: nn.Module = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        if type(layer) in _CONVS or (type(layer) in _TRANSPOSED and layer.groups == 1):
            self._replace(behind, fuse_conv_bn_eval(layer, norm, transpose=type(layer) in _TRANSPOSED))
        elif type(layer) is nn.Linear:
            self._replace(behind, fuse_linear_bn_eval(layer, norm))
        elif not isinstance(norm, BatchNormAct2d) and (ahead := self._conv_of_same_block(node)):
            self._replace(ahead, _with_norm_before(self.modules[str(ahead.target)], norm))
        else:
            return
        self._replace(node, rest)

    def _fold_scale(self, node: fx.Node, scale: Tensor | float, channels: int | None) -> None:
        behind, layer = self._layer(node.args[0], channels)
        if type(layer) in (*_CONVS, nn.Linear):
            self._replace(behind, scaled(layer, scale))
            self._replace(node, nn.Identity())

    def _is_free(self, module: nn.Module) -> bool:
        """Tell whether nothing but one call sees a module or its tensors."""
        return self.calls[id(module)] == 1 and not self._is_seen(module)

    def _is_seen(self, module: nn.Module) -> bool:
        """Tell whether anything but calls sees a module or its tensors; hooks do, and old weight norms are hooks."""
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        hooks = module._forward_hooks or module._forward_pre_hooks
        return bool(hooks) or any(id(tensor) in self.read for tensor in tensors)

    def _layer(self, node: Any, channels: int | None) -> tuple[Any, Any]:
        """Return the call of a layer whose result nothing else sees, and the layer, behind steps that compute nothing.

        `channels` is where its channels must come out: dimension 1, the last one, or None for anywhere.
        """
        moved = False  # from the last dimension to dimension 1
        while isinstance(node, fx.Node) and len(node.users) == 1:
            module = self.modules[str(node.target)] if node.op == "call_module" else None
            last_to_first = node.op == "call_method" and node.target == "permute" and node.args[1:] == (0, 3, 1, 2)
            if isinstance(module, _NOTHING) or (last_to_first and not moved):
                moved = moved or last_to_first
                node = node.args[0]
                continue
            if module is None or not self._is_free(module):
                break
            if type(module) is nn.Linear:
                fits = channels in (None, 1 if moved else -1)
            else:
                fits = channels is None or (channels == 1 and not moved)
            return (node, module) if fits else (None, None)
        return None, None

    def _conv_of_same_block(self, norm: fx.Node) -> fx.Node | None:
        """Return the call of a convolution that alone sees a norm's result, not across a level's end."""
        node = self._next_of_same_block(norm)
        conv: Any = self.modules[str(node.target)] if node else None
        return node if type(conv) in _CONVS and conv.groups == 1 and not any(conv.padding) else None

    def _next_of_same_block(self, node: fx.Node) -> fx.Node | None:
        """Return the call of a module, free, that alone sees a result, behind steps that compute nothing."""
        block = str(node.target).rpartition(".")[0]
        while block and len(node.users) == 1:
            node = next(iter(node.users))
            if node.op != "call_module" or not str(node.target).startswith(f"{block}."):
                return None
            module = self.modules[str(node.target)]
            if not isinstance(module, _NOTHING):
                return node if self._is_free(module) else None
        return None

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        parent, _, child = name.rpartition(".")
        self.calls[id(module)] = 1
        setattr(self.modules[parent], child, module.eval())
        self.modules[name] = module


def _with_norm_before(conv: Any, norm: Any) -> nn.Module:
    """Return a convolution that normalises what it sees, which torch's fusion lacks; without padding it is exact."""
    conv = copy.deepcopy(conv)
    with torch.no_grad():
        ones = torch.ones_like(norm.running_var)
        scale = (ones if norm.weight is None else norm.weight) * (norm.running_var + norm.eps).rsqrt()
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        across = (1, -1, *[1] * (conv.weight.dim() - 2))
        bias = (conv.weight * shift.view(across)).flatten(1).sum(1)
        bias = bias if conv.bias is None else conv.bias + bias
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))  # the norm may be of another type
        conv.weight = nn.Parameter((conv.weight * scale.view(across)).to(conv.weight.dtype))
    return conv
