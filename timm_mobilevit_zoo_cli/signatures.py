"""What a function takes and says, read from its source: to import it would be to import torch.

`inspect` would give the same of the imported function, but for python -OO, which drops docstrings.
"""

import ast
import collections.abc
import inspect
import re
import textwrap
import typing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Argument", "Function", "read"]

_NAMES: dict[str, Any] = {**vars(typing), **vars(collections.abc), "Path": Path}


class Argument(NamedTuple):
    """One argument of a function."""

    name: str
    kind: Any  # its annotation
    keyword_only: bool
    required: bool
    default: Any
    text: str  # what the docstring says of it


class Function(NamedTuple):
    """A function's first line of documentation, and its arguments."""

    summary: str
    arguments: tuple[Argument, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each argument that has one."""
        return {argument.name: argument.default for argument in self.arguments if not argument.required}


@cache
def read(path: Path, name: str) -> Function:
    """Return what the file at `path` says of its function `name`.

    Args:
        path: Python source. Annotations may name what `typing` and `collections.abc` have, and aliases of a `Literal`
            in the same file or in one beside it that it imports from.
        name: The function, at the file's top level.
    """
    nodes = _nodes(path)
    names = _NAMES | _literals(nodes)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            names |= _literals(_nodes(path.with_name(f"{node.module}.py")))
    function = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name)
    doc = inspect.cleandoc(ast.get_docstring(function) or "")
    texts, given = _argument_texts(doc), function.args
    missing: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    found = []
    for nodes_of, defaults, keyword_only in (
        (given.args, [*missing, *given.defaults], False),
        (given.kwonlyargs, given.kw_defaults, True),
    ):
        for one, default in zip(nodes_of, defaults, strict=True):
            value = None if default is None else _value(default, names)
            kind = _value(one.annotation, names)
            found.append(Argument(one.arg, kind, keyword_only, default is None, value, texts.get(one.arg, "")))
    return Function(doc.partition("\n")[0], tuple(found))


def _nodes(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _literals(nodes: list[ast.stmt]) -> dict[str, Any]:
    """Return the names that stand for a `Literal`."""
    found = [node for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal[")]
    return {ast.unparse(target): _value(node.value, _NAMES) for node in found for target in node.targets}


def _value(node: Any, names: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<signature>", "eval"), dict(names))


def _argument_texts(doc: str) -> dict[str, str]:
    """Return what a Google-style docstring says of each argument."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.split(r"\n(?=\w)", textwrap.dedent(section[1])) if section else []
    pairs = (entry.partition(":") for entry in entries)
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs}
