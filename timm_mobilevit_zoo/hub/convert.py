"""Turn a checkpoint, an author's or a trainer's, into a checked folder of weights."""

import json
from pathlib import Path
from typing import Any

import timm
import torch

from timm_mobilevit_zoo.common.files import digests
from timm_mobilevit_zoo.models.checkpoints import odd_ones, read_checkpoint, read_told
from timm_mobilevit_zoo.models.loading import classes_of, create, translate
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.pins import CONFIG, WEIGHTS
from timm_mobilevit_zoo_cli.checks import check
from timm_mobilevit_zoo_cli.licences import CARD_WORDS
from timm_mobilevit_zoo_cli.near import did_you_mean

from .checks import ASIDE, Refused, check_config
from .folder import export
from .reading import read_config
from .record import card_of_run

__all__ = ["convert", "read_checkpoint"]

TOLD = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")  # what a config says of images


def convert(
    checkpoint: str,
    *,
    model: str,
    output: str,
    license: str,
    license_name: str = "",
    license_link: str = "",
    dataset: str = "",
    source: str = "",
    description: str = "",
    ema: bool = False,
    img_size: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint, from the authors or from timm's training script, into a folder that timm loads.

    Where a `config.json` of timm's kind lies beside it, as in the folder of a run, labels and preprocessing are those
    that it tells; and what a run has recorded of these very weights goes into the card.

    Args:
        checkpoint: File with weights: safetensors, or what torch.save wrote.
        model: Registered name of this package.
        output: Folder to write, new or empty.
        license: Licence of the weights, as the Hub names it: mit, apache-2.0, cc-by-nc-4.0 and so on, or other; in any
            case.
        license_name: For the licence other: its name, such as my-license-1.0.
        license_link: For the licence other: its address.
        dataset: Data that the weights were trained on; its name on the Hub if it is there.
        source: Where the weights come from.
        description: Text for the model card.
        ema: Take the averaged weights.
        img_size: Side of the square input, or its height and width, in pixels, of a model made for one size; the
            model's own if not given.

    Returns:
        What `hub.check` returns of the folder.

    Raises:
        FileNotFoundError: For a checkpoint that is not there.
        ValueError: For a checkpoint that cannot be read or does not fit, by the names of what does not, or one beside
            the config of another network; and as `hub.export`. Nothing is left in the output then.
    """
    given = dict(locals())
    check("convert", given)
    if model not in our_models():
        raise ValueError(f"model={model!r} is not one of this package's{did_you_mean(model, our_models())}")
    path = Path(checkpoint)
    told = _told_beside(path, model)
    card = {key: given[key] for key in CARD_WORDS if given[key]}
    if told and path.name == WEIGHTS:
        card = card_of_run(path.parent, digests(path)["sha256"]) | card
    tensors, facts = read_told(checkpoint, ema=ema)
    if img_size is None and "input_size" in told:
        img_size = told["input_size"][1]
    weights = translate(tensors, model, img_size, file=checkpoint)
    cfg: Any = timm.get_pretrained_cfg(model)
    first = weights.get(f"{cfg.first_conv}.weight")
    args = {
        "img_size": img_size,
        "num_classes": classes_of(weights, model, checkpoint),
        "in_chans": 3 if first is None or first.ndim != 4 else first.shape[1],
    }
    with torch.device("meta"):  # nothing is made as large as a file says before all of it fits
        wanted = create(model, **args).state_dict()
    if odd := odd_ones(weights, wanted):
        raise ValueError(f"checkpoint={str(checkpoint)!r} does not fit {model}: {odd}")
    if len(told.get("label_names") or ()) not in (0, args["num_classes"]):
        count = len(told["label_names"])
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} has {args['num_classes']} classes, the {CONFIG} beside it names {count}"
        )
    network = create(model, **args)
    network.load_state_dict(weights)
    if told:
        for key in ("test_input_size", "test_crop_pct"):  # they speak of the name's own weights
            network.pretrained_cfg.pop(key, None)
    network.pretrained_cfg |= {"num_classes": network.num_classes} | facts | told
    return export(network, output, card=card)


def _told_beside(checkpoint: Path, model: str) -> dict[str, Any]:
    """Return labels and preprocessing as the config beside a checkpoint tells them, nothing without one of timm's kind.

    Raises:
        ValueError: For the config of another network, and one that `hub.check` would refuse.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == ASIDE else checkpoint.parent
    if not (folder / CONFIG).is_file():
        return {}
    data = read_config(folder)
    try:
        whole = json.loads(data)
        if not isinstance(whole, dict) or "pretrained_cfg" not in whole:
            return {}  # of other libraries, which call theirs the same
        config = check_config(data, our_models())
    except (Refused, ValueError, RecursionError) as error:
        alone = f"; without it, in a folder of its own, it is converted with the preprocessing of {model}"
        raise ValueError(f"checkpoint={str(checkpoint)!r}: {CONFIG} beside it is refused: {error}{alone}") from None
    if config["architecture"] != model:
        raise ValueError(
            f"model={model!r} is not that of checkpoint={str(checkpoint)!r}: the {CONFIG} beside it says "
            f"{config['architecture']!r}"
        )
    cfg = config["pretrained_cfg"]
    found = {key: tuple(cfg[key]) if isinstance(cfg[key], list) else cfg[key] for key in TOLD if cfg.get(key)}
    names = config.get("label_names") or cfg.get("label_names")
    return found | ({"label_names": names} if names else {})
