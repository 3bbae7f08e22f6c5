"""Put a network into plain operations, for images of one size: same outputs, in what small runtimes compute.

torch guards the softmax of its attention against rows that are masked throughout, expands both sides of a product of
more than two dimensions, and cuts with operations of several results: XNNPACK knows none of these. Where all sizes are
known they can be written with products of stacks of matrices, softmax, slices of step 1, reshapes and permutations.
What is computed from weights alone, or only from sizes, is computed here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from .rewrite import portable

__all__ = ["plain"]

_aten = torch.ops.aten


@torch.no_grad()
def plain(network: nn.Module, x: Tensor, in_steps: bool = False) -> nn.Module:
    """Return what `portable` does, in plain operations.

    Args:
        network: A network in evaluation mode, on the CPU.
        x: Images of the size that the result is for, `(B, C, H, W)`.
        in_steps: Take means over maps along rows first: in 16 bits the sum of a map can overflow.
    """
    graph: Any = torch.export.export(portable(network), (x,), strict=False).module()
    _fold_constants(graph)
    forms = _FORMS | _IN_STEPS if in_steps else _FORMS
    rewritten: Any = torch.export.export(_Rewritten(graph, forms), (x,), strict=False).module()
    return rewritten


class _Rewritten(nn.Module):
    def __init__(self, graph: fx.GraphModule, forms: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.rewritten, self.forms = graph, forms

    def forward(self, x: Tensor) -> Any:
        return _Rewriter(self.rewritten, self.forms).run(x)


class _Rewriter(fx.Interpreter):
    """Runs a graph with other functions in place of some."""

    def __init__(self, graph: fx.GraphModule, forms: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__(graph)
        self.forms = forms

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.forms.get(target, target)(*args, **kwargs)


def _fold_constants(module: fx.GraphModule) -> None:
    """Compute what does not depend on the images once, in place."""
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = attrgetter(str(node.target))(module)
        elif node.target is _aten.ones_like.default:
            known[node] = torch.ones(node.meta["val"].shape)
        elif node.op == "call_function" and node.all_input_nodes and known.keys() >= set(node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op != "get_attr" and isinstance(value, Tensor) and not node.users.keys() <= known.keys():
            name = f"folded_{node.name}"
            module.register_buffer(name, value.detach().contiguous())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name))
    module.graph.eliminate_dead_code()
    module.recompile()


def _same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if is_causal or enable_gqa or (attn_mask is not None and attn_mask.dtype == torch.bool):
        attention = _aten.scaled_dot_product_attention.default
        return attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    attn = _matmul(q, (k * (q.shape[-1] ** -0.5 if scale is None else scale)).transpose(-2, -1))
    return _matmul((attn if attn_mask is None else attn + attn_mask).softmax(-1), v)


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply stacks of matrices as one stack."""
    if x.dim() < 3 or x.shape[:-2] != y.shape[:-2]:
        return x @ y
    product = torch.bmm(x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]))
    return product.reshape(*x.shape[:-1], y.shape[-1])


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Write the approximation out: XNNPACK, given it, computes the exact function."""
    if approximate == "none":
        return F.gelu(x)
    return x * ((x * (x * x * 0.044715 + 1.0) * math.sqrt(2 / math.pi)).tanh() + 1.0) * 0.5


def _softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Take it of the rows of a matrix: ExecuTorch 1.5.1 takes that of a map behind a convolution over its channels."""
    if dim % x.dim() < x.dim() - 1:
        return _softmax(x.transpose(dim, -1), -1, dtype).transpose(dim, -1)
    return x.reshape(-1, x.shape[-1]).softmax(-1, dtype).reshape(x.shape)


def _mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """Take a mean as that over a map `(B, C, H, W)`, which it is brought to."""
    gone = sorted(dim % x.dim() for dim in (dims or range(x.dim())))
    shape = [1 if dim in gone else side for dim, side in enumerate(x.shape) if keepdim or dim not in gone]
    if x.dim() != 4 or gone != [2, 3]:
        kept = [dim for dim in range(x.dim()) if dim not in gone]
        x = x.permute(*kept, *gone).reshape(1, math.prod(shape), 1, -1)
    return x.mean((2, 3), keepdim=True).reshape(shape)


def _mean_in_steps(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    gone = sorted(dim % x.dim() for dim in (dims or range(x.dim())))
    if len(gone) == 1:
        return _mean(x, gone, keepdim)
    return _mean_in_steps(_mean(x, gone[-1:], keepdim), gone[:-1], keepdim)


def _sum(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, dtype: Any = None, mean: Any = _mean) -> Tensor:
    found = mean(x, dims, keepdim)
    return found * float(x.numel() // found.numel())  # a whole number would be converted by an operation


def _cut(x: Tensor, dim: int, start: int, end: int) -> Tensor:
    return x if (start, end) == (0, x.shape[dim]) else _aten.slice.Tensor(x, dim, start, end)


def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """Cut, and of each `step` cells keep one: a step alone is not in everyone's slices."""
    dim %= x.dim()
    start, end, _ = slice(start, end).indices(x.shape[dim])
    if step == 1:
        return _cut(x, dim, start, end)
    count, kept = -(-(end - start) // step), start % step
    start -= kept  # so that most often nothing is missing: XNNPACK pads nothing behind a layer in 8 bits
    missing = start + count * step - x.shape[dim]
    if missing > 0:
        x = F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing))
    x = _cut(x, dim, start, start + count * step).unflatten(dim, (count, step))
    return _cut(x, dim + 1, kept, kept + 1).flatten(dim, dim + 1)


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    index %= x.shape[dim]
    return _cut(x, dim % x.dim(), index, index + 1).reshape([*x.shape[:dim], *x.shape[dim:][1:]])


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    return [_select(x, dim, index) for index in range(x.shape[dim])]


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [_cut(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _split_each(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    return _split(x, [min(size, x.shape[dim] - start) for start in range(0, x.shape[dim], size)], dim)


def _chunk(x: Tensor, count: int, dim: int = 0) -> list[Tensor]:
    return _split_each(x, -(-x.shape[dim] // count), dim)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Tensor:
    for shift, dim in zip(shifts, dims, strict=True):
        at = -shift % x.shape[dim]
        x = torch.cat([_cut(x, dim, at, x.shape[dim]), _cut(x, dim, 0, at)], dim)
    return x


def _unsqueeze(x: Tensor, dim: int) -> Tensor:
    place = dim % (x.dim() + 1)
    return x.reshape(*x.shape[:place], 1, *x.shape[place:])


def _stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat([_unsqueeze(part, dim) for part in parts], dim)


def _divide(x: Tensor, by: Any) -> Tensor:
    return x / by if isinstance(by, Tensor) else x * (1 / by)


def _expand(x: Tensor, sizes: Sequence[int], implicit: bool = False) -> Tensor:
    grown = x.expand(sizes)
    return x if grown.shape == x.shape else grown


def _pad(x: Tensor, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Cut where a pad is negative, and pad where any is left."""
    for place, pad in enumerate(pads):
        dim = x.dim() - 1 - place // 2
        if mode == "constant" and pad < 0:
            x = _cut(x, dim, -pad, x.shape[dim]) if place % 2 == 0 else _cut(x, dim, 0, x.shape[dim] + pad)
    pads = [max(pad, 0) for pad in pads] if mode == "constant" else list(pads)
    return F.pad(x, pads, mode, value) if any(pads) else x


def _resize(x: Tensor, size: Any, *rest: Any) -> Tensor:
    return x if size is not None and list(size) == list(x.shape[2:]) else _aten.upsample_bilinear2d.vec(x, size, *rest)


_FORMS: dict[Any, Callable[..., Any]] = {
    _aten.alias.default: _same,
    _aten.clone.default: _same,
    _aten.contiguous.default: _same,
    _aten.dropout.default: _same,
    _aten.view.default: _aten.reshape.default,  # contiguous memory is not kept up
    _aten.scaled_dot_product_attention.default: _attention,
    _aten.matmul.default: _matmul,
    _aten.gelu.default: _gelu,
    _aten.softmax.int: _softmax,
    _aten.mean.dim: _mean,
    _aten.sum.dim_IntList: _sum,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.unbind.int: _unbind,
    _aten.split_with_sizes.default: _split,
    _aten.split.Tensor: _split_each,
    _aten.chunk.default: _chunk,
    _aten.unsqueeze.default: _unsqueeze,
    _aten.stack.default: _stack,
    _aten.div.Tensor: _divide,
    _aten.roll.default: _roll,
    _aten.expand.default: _expand,
    _aten.pad.default: _pad,
    _aten.upsample_bilinear2d.vec: _resize,
}
_IN_STEPS: dict[Any, Callable[..., Any]] = {
    _aten.mean.dim: _mean_in_steps,
    _aten.sum.dim_IntList: partial(_sum, mean=_mean_in_steps),
}
