"""Turn a checkpoint, an author's or a trainer's, into a checked folder of weights."""

from typing import Any

import timm
import torch

from timm_mobilevit_zoo.models.checkpoints import odd_ones, read_checkpoint, read_told
from timm_mobilevit_zoo.models.loading import classes_of, create, translate
from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo_cli.checks import check
from timm_mobilevit_zoo_cli.licences import CARD_WORDS
from timm_mobilevit_zoo_cli.near import did_you_mean

from .folder import export

__all__ = ["convert", "read_checkpoint"]


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
    """Convert a checkpoint, the authors' or one of timm's training, into a folder that timm loads.

    Args:
        checkpoint: File with weights: safetensors, or what torch.save wrote.
        model: Registered name of this package.
        output: Folder to write, new or empty.
        license: Licence of the weights, as the Hub names it: mit, apache-2.0, cc-by-nc-4.0 and so on, or other; in any
            case.
        license_name: Name of a licence that is other, such as my-license-1.0.
        license_link: Address of a licence that is other.
        dataset: Data that the weights were trained on; its name on the Hub if it is there.
        source: Where the weights come from.
        description: Text for the model card.
        ema: Take the averaged weights.
        img_size: Side of the square input, or its height and width, in pixels, of a model made for one size; the
            model's own where not given.

    Returns:
        What `hub.check` returns of the folder.

    Raises:
        FileNotFoundError: For a checkpoint that is not there.
        ValueError: For a checkpoint that cannot be read or does not fit, by the names of what does not; and as
            `hub.export`. Nothing is left in the output then.
    """
    given = dict(locals())
    check("convert", given)
    if model not in our_models():
        raise ValueError(f"model={model!r} is none of this package's{did_you_mean(model, our_models())}")
    card = {key: given[key] for key in CARD_WORDS if given[key]}
    tensors, facts = read_told(checkpoint, ema=ema)
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
    network = create(model, **args)
    network.load_state_dict(weights)
    network.pretrained_cfg |= {"num_classes": network.num_classes} | facts
    return export(network, output, card=card)
