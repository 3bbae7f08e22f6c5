"""Networks that we may change: a caller's own keeps its modes, switches, hooks and layout, and other threads use it."""

import copy
from types import MethodType
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["copied", "twin", "unwrapped"]


def unwrapped(model: Any) -> Any:
    """Return the network inside the wrappers of torch.compile, DistributedDataParallel, weight averages and their kind.

    Raises:
        ValueError: For a TorchScript module, which no longer has the network's classes.
    """
    network = unwrap_model(model)
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError("model is a TorchScript module; pass the network that it was made from")
    return network


def twin(network: nn.Module) -> Any:
    """Return modules in evaluation mode, with hooks and switches of their own, that have a network's very tensors.

    Only the modes are set: some networks' own `train` and `eval` do more than that.
    """
    own = copy.deepcopy(network, _hooks(network) | {id(tensor): tensor for tensor in _tensors(network)})
    for module in own.modules():
        module.training = False
    return own


@torch.no_grad()
def copied(network: nn.Module) -> Any:
    """Return a copy in which layers have weights, where those of the network were computed from others in each call."""
    computed: dict[int, Any] = {
        id(tensor): tensor.detach().clone() for tensor in _tensors(network) if not tensor.is_leaf
    }
    own = copy.deepcopy(network, _hooks(network) | computed)
    for module in list(own.modules()):
        if parametrize.is_parametrized(module):
            # torch's own removal takes the names out of the class, which the caller's layer has, too.
            values = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
        for hook in list(module._forward_pre_hooks.values()):  # what torch had before parametrisations
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    return own


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return all that modules have, as parameters, buffers and attributes."""
    found: list[Tensor] = []
    for module in network.modules():
        values = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        found += [value for value in values if isinstance(value, Tensor)]
    return found


def _hooks(network: nn.Module) -> dict[int, Any]:
    """Return hooks that are methods of something else, by id: that is the caller's, and seldom can be copied."""
    hooks = (hook for m in network.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    methods = (hook for hook in hooks if isinstance(hook, MethodType))
    return {id(method): method for method in methods if not isinstance(method.__self__, nn.Module)}
