"""`pretrained=True`: weights from the place that a tag declares, compared with what pins them, in every network alike.

How a hub or a host is spoken to, the package `hub` knows; it says so by `fetched_by` and `opened_by`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor

from timm_mobilevit_zoo.common.files import digests, open_regular

from .names import own_name
from .pins import WEIGHTS, pins
from .places import NoWeights, Place, declaration, declared, no_weights, place_of

__all__ = ["build_pinned", "fetched_by", "opened_by"]

FetchT = TypeVar("FetchT", bound=Callable[..., Path])
ReadT = TypeVar("ReadT", bound=Callable[..., tuple[dict[str, Any], dict[str, Any]]])

_fetchers: list[Callable[..., Path]] = []
_readers: list[Callable[..., tuple[dict[str, Any], dict[str, Any]]]] = []


def fetched_by(fetch: FetchT) -> FetchT:
    """Decorate what fetches pinned weights: `fetch(repo_id, revision, sha256, cache_dir=...)`, a folder with them."""
    _fetchers[:] = [fetch]
    return fetch


def opened_by(read: ReadT) -> ReadT:
    """Decorate what reads a place: `read(place, cache_dir=...)`, its tensors, and what it tells of their config."""
    _readers[:] = [read]
    return read


def build_pinned(model_cls: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build as `timm.models.build_model_with_cfg`, with weights whose digests were compared where they are pinned.

    A file, a state dict, an address or another repository in `pretrained_cfg` or `pretrained_cfg_overlay` is left to
    timm.

    Args:
        model_cls: The network's class.
        variant: Name in the family's file; see `own_name`.
        pretrained: Load weights.
        **kwargs: As timm's function takes them.

    Raises:
        RuntimeError: For a name without weights anywhere, as timm does.
        ValueError: For a file whose classifier has another number of classes than its tag says.
    """
    own = own_name(variant)
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    lent: dict[str, Any] = {}  # what is in the config only while weights are loaded
    if pretrained:
        cfg: Any = resolve_pretrained_cfg(own, kwargs.get("pretrained_cfg"), dict(overlay))
        if not any(getattr(cfg, field) for field in ("source", "file", "state_dict", "hf_hub_id", "url")):
            raise NoWeights(no_weights(own))
        if declared(cfg):
            found, place = pins(variant, cfg.tag), place_of(cfg)
            if found:
                folder = _fetchers[0](found.repo_id, found.revision, found.sha256, cache_dir=kwargs.get("cache_dir"))
                lent = {"state_dict": _read_pinned(folder / WEIGHTS, found.sha256[WEIGHTS])}
            elif place:
                weights, told = _readers[0](place, cache_dir=kwargs.get("cache_dir"))
                lent = {"state_dict": weights}
                overlay = told | overlay
                kwargs["pretrained_filter_fn"] = _of_right_width(kwargs["pretrained_filter_fn"], place)
        elif cfg.url and (known := declaration(cfg)) and cfg.url != known.url and cfg.hf_hub_id == known.hf_hub_id:
            overlay["hf_hub_id"] = None  # or timm would take the repository
    model = build_model_with_cfg(model_cls, own, pretrained, pretrained_cfg_overlay=overlay | lent, **kwargs)
    for module in model.modules() if lent else ():  # a backbone's wrapper has a config of its own
        cfg = getattr(module, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            for field in lent:
                cfg.pop(field, None)  # the place is the source, not this computer's copy
    return model


def _read_pinned(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the weights of a file that is read once: what is compared is what is loaded."""
    with open_regular(path) as file:
        data = file.read()
    if (digest := digests(data)["sha256"]) != sha256:
        raise ValueError(f"{path} has changed: its digest is {digest}, not {sha256}")
    return load(data)


def _of_right_width(filter_fn: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """Make a checkpoint filter refuse a classifier of other classes than the tag's; timm would only drop it."""

    def checked(weights: dict[str, Any], model: Any) -> Any:
        found = filter_fn(weights, model)
        cfg = model.pretrained_cfg
        first = cfg["classifier"] if isinstance(cfg["classifier"], str) else cfg["classifier"][0]
        head = found.get(f"{first}.weight")
        if head is None or len(head) != cfg["num_classes"]:
            has = "no classifier" if head is None else f"{len(head)} classes"
            raise ValueError(f"{place} has {has}, and {place.variant} {cfg['num_classes']} classes")
        if (named := cfg.get("label_names")) and len(named) != cfg["num_classes"]:
            raise ValueError(f"{place}: class_to_idx names {len(named)} classes, and it has {cfg['num_classes']}")
        return found

    return checked
