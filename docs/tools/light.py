"""Write `timm_mobilevit_zoo_cli/light.json`, what `models --all` says of timm's light networks.

To build them all takes minutes, and the command takes none of these. A network is light here if it has weights in timm
for ImageNet-1k and at most 14 million parameters.

`python docs/tools/light.py` writes; with names behind it, it prints what it would write of these.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from timm_mobilevit_zoo.models.names import our_models
from timm_mobilevit_zoo.models.probe import gmacs

__all__ = ["LIGHT", "MOST", "entry", "main"]

LIGHT = Path(__file__).resolve().parents[2] / "timm_mobilevit_zoo_cli" / "light.json"
MOST = 14_000_000  # parameters


def entry(name: str) -> dict[str, Any] | None:
    """Return what is written of a network, None of one that is not light.

    Args:
        name: As `timm.list_models` has it.
    """
    cfg: Any = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights or cfg.num_classes != 1000:
        return None
    with torch.device("meta"):
        network: Any = timm.create_model(name).eval().requires_grad_(False)
    params = sum(parameter.numel() for parameter in network.parameters())
    if params > MOST:
        return None
    tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
    return {
        "params": params,
        "gmacs": round(gmacs(network, cfg.input_size), 3),
        "input_size": list(cfg.input_size),
        "license": cfg.license,
        "tag": cfg.tag,
        "tags": sorted(tags, key=lambda tag: (tag != cfg.tag, tag)),
    }


def main(names: list[str]) -> None:
    """Print the entries of names, or write those of all."""
    if names:
        sys.stdout.write(json.dumps({name: entry(name) for name in names}, indent=1) + "\n")
        return
    ours = set(our_models())
    found = {name: entry(name) for name in timm.list_models() if name not in ours}
    light = {name: one for name, one in found.items() if one}
    content = {"timm": timm.__version__, "models": light}
    lines = [f" {json.dumps(name)}: {json.dumps(one)}" for name, one in content["models"].items()]
    head = f'{{"timm": {json.dumps(content["timm"])}, "models": {{\n'
    LIGHT.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
