"""What a network computes, as a graph of its layers' calls, recorded without a change to what other threads run.

`torch.fx.Tracer.trace` replaces `nn.Module.__call__` of the whole process while it runs: whoever calls a module
meanwhile, in another thread, is recorded too, and two traces at once may leave it replaced for good. Here the modules
of the one network that is traced answer to the tracer, and no others.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.models import get_notrace_functions
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as torch_fx

__all__ = ["trace"]

_call = nn.Module.__call__
_one_at_a_time = threading.RLock()


def trace(network: nn.Module, defaults: dict[str, Any], is_leaf: Callable[[nn.Module], bool]) -> fx.Graph:
    """Return the graph of what a network's `forward` does.

    Args:
        network: Seen by nobody else, as a fresh copy is: its modules are of other classes meanwhile.
        defaults: Arguments of `forward` that are not traced, with their values.
        is_leaf: Tells of a module whether it is one call of the graph, beside those of `torch.nn`.

    Raises:
        Exception: Whatever a network does that cannot be recorded.
    """
    return _Tracer(network, is_leaf).trace(network, defaults)


class _Tracer(fx.Tracer):
    def __init__(self, network: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        of_torch = super().is_leaf_module
        self.leaves = {module for name, module in network.named_modules() if is_leaf(module) or of_torch(module, name)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        forward = type(root).forward
        self.root = root
        self.root_module_name = root._get_name()
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {
            value: f"{name}.{key}".lstrip(".")
            for name, module in root.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        function, args = self.create_args_for_root(forward, True, concrete_args)
        with self._listening(root, forward.__globals__):
            self.create_node("output", "output", (self.create_arg(function(*args)),), {})
        return self.graph

    @contextmanager
    def _listening(self, root: nn.Module, names: dict[str, Any]) -> Iterator[None]:
        """Record calls of a network's modules and functions, and what is read of its parameters.

        The functions are replaced in the files that call them, by such as record only what they get of a trace; so for
        another thread they are as they were. Yet two that replace them at once would not put them back.
        """
        proxies: dict[str, fx.Proxy] = {}
        classes: dict[type, type] = {}
        modules = [(module, type(module)) for module in root.modules()]
        with _one_at_a_time, torch_fx._Patcher() as functions:
            wrap: Any = partial(torch_fx._autowrap_check, functions, function_ids=self._autowrap_function_ids)

            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                wrap(getattr(module.forward, "__globals__", {}))
                return self.call_module(module, partial(_call, module), args, kwargs)

            for cls in {cls for _, cls in modules}:

                def read(module: nn.Module, name: str, cls: Any = cls) -> Any:
                    return self.getattr(name, cls.__getattr__(module, name), proxies)

                own = {"__call__": call, "__getattr__": read, "__module__": cls.__module__}
                make: Any = type(cls)
                classes[cls] = make(cls.__name__, (cls,), own)
            torch_fx._patch_wrapped_functions(functions)
            wrap(names)
            for searched in self._autowrap_search:
                wrap(vars(searched))
            try:
                for module, cls in modules:
                    module.__class__ = classes[cls]
                yield
            finally:
                for module, cls in modules:
                    module.__class__ = cls
