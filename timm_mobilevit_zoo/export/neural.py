"""What is reported to leave Apple's Neural Engine, counted in a written program.

Apple does not say which operations that processor computes, and Core ML decides on the device, by what it reckons each
would cost. So nothing here says that an operation stays on it: only which ones somebody found not to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .mil import Program

__all__ = ["RULES", "Rule", "leaving"]


class Rule(NamedTuple):
    """What leaves the Neural Engine, why, and who says so."""

    name: str
    holds: Callable[[Program, Any], bool]
    why: str
    source: str


# Read in November 2026.
_APPLE = "https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html"
_HOLLANCE = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
_CATALOGUE = "https://aneforge.readthedocs.io/en/latest/op-catalog/"  # compiled for M1 to M5, run on M1 and M5
_LIMITS = "https://aneforge.readthedocs.io/en/latest/capabilities/"
_GATHERS = {"gather", "gather_along_axis", "gather_nd"}
_NONE_HAS = {
    *("acos", "acosh", "asin", "asinh", "atanh", "band_part", "cosh", "gru", "logical_and", "logical_or"),
    *("logical_xor", "lstm", "mod", "non_zero", "one_hot", "random_bernoulli", "random_categorical", "random_normal"),
    *("reduce_prod", "reverse_sequence", "rnn", "scatter", "scatter_along_axis", "scatter_nd", "shape", "sinh"),
    *("sliding_windows", "tan"),
}
_KERNEL, _WINDOW, _SIDE = 13, 29, 16384


def _types(operation: Any) -> list[Any]:
    return [result.type.tensorType for result in operation.outputs]


def _is_float32(program: Program, one: Any) -> bool:
    named = program.spec.mlProgram.DESCRIPTOR.file.pool.FindEnumTypeByName("CoreML.Specification.MILSpec.DataType")
    number = named.values_by_name["FLOAT32"].number
    return one.type != "cast" and any(result.dataType == number for result in _types(one))


def _is_dilated(program: Program, one: Any) -> bool:
    return one.type == "conv" and any(step > 1 for step in _numbers(program, one, "dilations"))


def _is_wide(program: Program, one: Any) -> bool:
    if one.type != "conv":
        return False
    (weight,) = one.inputs["weight"].arguments
    return any(side > _KERNEL for side in program.shapes[weight.name][2:])


def _pools_far(program: Program, one: Any) -> bool:
    return one.type in ("avg_pool", "max_pool") and any(
        side > _WINDOW for side in _numbers(program, one, "kernel_sizes")
    )


def _is_long(_: Program, one: Any) -> bool:
    """Say whether a result has a side, other than channels, beyond what the chips before A16 take."""
    sides = [[dim.constant.size for dim in result.dimensions] for result in _types(one)]
    return any(size > _SIDE for shape in sides for place, size in enumerate(shape) if (len(shape), place) != (4, 1))


def _numbers(program: Program, one: Any, name: str) -> Any:
    found = program.constant(one, name)
    return () if found is None else found


RULES = (
    Rule("float32", _is_float32, "a result in 32 bits is computed on the GPU or the CPU", _APPLE),
    Rule(
        "gather",
        lambda _, one: one.type in _GATHERS,
        "found on the CPU; on M1 only small ones are not",
        _HOLLANCE,
    ),
    Rule("dilation", _is_dilated, "reported to leave it; others found it computed from M1 on", _HOLLANCE),
    Rule("kernel", _is_wide, f"in 16 bits a kernel has at most {_KERNEL} columns on M1, and 15 on M5", _LIMITS),
    Rule("window", _pools_far, f"pooling has windows of at most {_WINDOW} cells a side on M1, 31 later", _CATALOGUE),
    Rule("side", _is_long, f"a side of a map has at most {_SIDE} cells before A16", _LIMITS),
    Rule("none", lambda _, one: one.type in _NONE_HAS, "no chip from M1 to M5 computes it", _CATALOGUE),
)


def leaving(program: Program) -> dict[str, dict[str, Any]]:
    """Return for each rule that holds for any operation `operations`, how many of each kind, `why` and its `source`."""
    found: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        kinds: dict[str, int] = {}
        for one in program.operations:
            if not one.type.startswith("constexpr_") and rule.holds(program, one):
                kinds[one.type] = kinds.get(one.type, 0) + 1
        if kinds:
            found[rule.name] = {"operations": kinds, "why": rule.why, "source": rule.source}
    return found
