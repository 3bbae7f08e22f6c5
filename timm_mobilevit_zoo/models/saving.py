"""The config of a folder of weights, as it rebuilds a network of this package: what timm writes, mended."""

from collections.abc import Mapping
from typing import Any

__all__ = ["MODEL_ARGS", "RATES", "mended"]

MODEL_ARGS = {"num_classes", "in_chans", "global_pool", "img_size"}  # none that makes a network larger
RATES = {"attn_drop_rate", "drop_block_rate", "drop_path_rate", "drop_rate", "proj_drop_rate"}  # of training


def mended(config: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """Return what timm's `save_for_hf` writes as `config.json`, with what is wrong in it mended.

    Rates of training are left out, and the number of classes is told once, so that transformers loads it too.

    Args:
        config: What timm has written, of which `pretrained_cfg` may be changed.
        network: The network that it speaks of, one of this package's.

    Raises:
        ValueError: For arguments which the network's name alone does not say.
    """
    config = dict(config)
    args, cfg = config.pop("model_args", {}), config["pretrained_cfg"]
    args = {key: value for key, value in args.items() if key not in RATES}
    odd = {key: value for key, value in args.items() if key not in MODEL_ARGS}
    if odd:
        raise ValueError(f"model was built with {odd}, which {config['architecture']} alone does not say")
    args.pop("num_classes", None)  # transformers would get it twice
    # timm before 1.0.31 leaves what the name's own config says of classes, channels and the size of the image.
    cfg["num_classes"] = network.num_classes
    if network.in_chans != cfg["input_size"][0]:
        cfg["input_size"] = [network.in_chans, *cfg["input_size"][1:]]
        cfg |= {key: [sum(cfg[key]) / len(cfg[key])] for key in ("mean", "std")}
    if cfg.get("fixed_input_size"):
        cfg["input_size"] = [network.in_chans, *network.patch_embed.img_size]
    if network.in_chans != 3:
        args["in_chans"] = network.in_chans
    if args:
        config["model_args"] = args
    # Of a trained network, where timm finds them in both places and transformers in this one.
    return config | {key: cfg.pop(key) for key in ("label_names", "label_descriptions") if key in cfg}
