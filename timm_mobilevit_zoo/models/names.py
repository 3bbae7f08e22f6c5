"""The names of this package's models: timm's registry, in which a name that timm has stays timm's."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import timm

from timm_mobilevit_zoo_cli.near import did_you_mean

__all__ = ["our_models", "own_name", "register_model", "unknown", "warn_of_taken"]

ModelT = TypeVar("ModelT")

PREFIX = "zoo_"
_PACKAGE = __name__.partition(".")[0]
_taken: list[str] = []


def _is_ours(name: str) -> bool:
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith(f"{_PACKAGE}.")


def our_models() -> list[str]:
    """Return the names that this package registers."""
    return [name for name in timm.list_models() if _is_ours(name)]


def unknown(name: str) -> str:
    """Return what is said of a name that nobody registers, from "a model" on: the nearest names, or where all are."""
    meant = did_you_mean(name.partition(".")[0], timm.list_models())
    return f"a model of timm's or of this package{meant or '; see timm_mobilevit_zoo.list_models()'}"


def own_name(name: str) -> str:
    """Return the name under which this package's model is registered where timm may have one of the same name.

    It is `name` with the prefix `zoo_` or without it, whichever is registered: weights may come from where another timm
    is installed. A name that is not one of this package's is returned as it is.
    """
    bare = name.removeprefix(PREFIX)
    return next((ours for ours in (bare, PREFIX + bare) if _is_ours(ours)), name)


def register_model(fn: Callable[..., ModelT]) -> Callable[..., ModelT]:
    """Register an entry point as `timm.models.register_model` does, which would take a name away from timm.

    Where timm has the name, that model stays, and ours is called `zoo_<name>`.
    """
    name = fn.__name__
    if not timm.is_model(name) or _is_ours(name):
        return timm.models.register_model(fn)
    _taken.append(name)

    @wraps(fn)
    def renamed(pretrained: bool = False, **kwargs: Any) -> ModelT:
        return fn(pretrained, **kwargs)

    renamed.__name__ = PREFIX + name
    module = sys.modules[fn.__module__]
    setattr(module, renamed.__name__, renamed)
    module.default_cfgs[renamed.__name__] = module.default_cfgs.pop(name)
    timm.models.register_model(renamed)
    return fn


def warn_of_taken() -> None:
    """Warn, in one sentence, of the names that timm has too."""
    if _taken:
        warnings.warn(
            f"timm has models called {', '.join(_taken)}, and they stay timm's. Those of timm_mobilevit_zoo are called "
            f"{', '.join(PREFIX + name for name in _taken)}",
            stacklevel=2,
        )
