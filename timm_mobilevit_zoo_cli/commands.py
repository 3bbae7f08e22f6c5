"""What each command does, and what it says of it. Only here is the package imported, once the words are right."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .catalogue import list_models
from .installed import pip_line
from .parser import parser
from .text import printable

__all__ = ["COMMANDS", "QUICK"]

QUICK = ("models", "completion")  # for which the package is not imported


def _train(**args: Any) -> int:
    from timm_mobilevit_zoo.train import train

    best = train(**args)
    from accelerate import PartialState

    if not PartialState().is_main_process:  # of several, one speaks
        return 0
    _say(f"best epoch {best['epoch']:.0f}: top-1 {best['val_top1']:.2f}%, loss {best['val_loss']:.4f}")
    _say(f"load it with timm.create_model('local-dir:{best['output']}', pretrained=True)")
    return 0


def _predict(model: str, images: list[str], as_json: bool, trust: bool, **args: Any) -> int:
    results = _missing(images)
    if len(results) < len(images):  # or else no network is needed to say what there is to say
        from timm_mobilevit_zoo.models.loading import load
        from timm_mobilevit_zoo.train.predict import predict

        results = predict(load(model, trust=trust), images, **args)
    if as_json:
        for line in json.dumps(results, indent=2).splitlines():
            _say(line)
    else:
        for result in results:
            classes = result.get("classes", ())
            found = "  ".join(f"{entry['label']} {100 * entry['probability']:.1f}%" for entry in classes)
            _say(f"{result['image']}: {found}" if found else result["error"])
    return 1 if any("error" in result for result in results) else 0


def _missing(images: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `predict` does of those images that are not there."""
    results: list[dict[str, Any]] = []
    for image in images:
        try:
            os.stat(image)
        except OSError as error:
            results.append({"image": image, "error": f"{image} cannot be read: {type(error).__name__}: {error}"})
    return results


def _maps(**args: Any) -> int:
    from timm_mobilevit_zoo.maps import draw_file

    draw_file(**args)
    return 0


def _check(folder: str) -> int:
    from timm_mobilevit_zoo.hub import check

    return _tell(folder, check(folder))


def _convert(push: str, yes: bool, private: bool, **args: Any) -> int:
    from timm_mobilevit_zoo.hub.convert import convert

    if push:
        from timm_mobilevit_zoo.hub.remote import check_repo_id

        check_repo_id(push)  # before the work
    elif yes or not private:
        raise ValueError("--yes and --no-private go with --push OWNER/NAME")
    found = convert(**args)
    _say(f"wrote {args['output']}: {found['architecture']}, {found['num_classes']} classes, bit for bit")
    if not push:
        return 0
    hint = f"timm-mobilevit-zoo push {shlex.join([args['output'], push])} {'' if private else '--no-private '}--yes"
    return _push(folder=args["output"], repo_id=push, yes=yes, private=private, hint=hint)


def _pull(**args: Any) -> int:
    from timm_mobilevit_zoo.hub import pull

    found = pull(**args)
    return _tell(found["path"], found)


def _weights(pattern: str, as_json: bool) -> int:
    from timm_mobilevit_zoo.hub.weights import weights

    rows = weights(pattern)
    if as_json:
        for line in json.dumps(rows, indent=2).splitlines():
            _say(line)
        return 0
    table = [["name.tag", "top-1, %", "licence", "MB", "digest", "file"]]
    for row in rows:
        top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        where = f"{row['source']} {row['file']}" if row["place"] == "hub" else row["source"]
        digest = "pinned" if row["pinned"] else "unknown"
        table.append([row["name"], top1, row["license"] or "not stated", size, digest, where])
    _say_table(table)
    _say("Top-1 is what the authors claim of the file, on ImageNet-1k. The links are as of 2026-11-29, and nobody here")
    _say("has had the files: a digest that is unknown is told by `timm-mobilevit-zoo pin NAME`, which downloads one.")
    return 0


def _models(pattern: str, all: bool, as_json: bool) -> int:
    rows = list_models(pattern, all=all)
    if as_json:
        for line in json.dumps([{"name": name, **row} for name, row in rows.items()], indent=2).splitlines():
            _say(line)
        return 0
    table = [["name", "params (M)", "GMACs", "image", "top-1, %", "weights"]]
    for name, row in rows.items():
        numbers = [f"{row['params'] / 1e6:.2f}", f"{row['gmacs']:.3f}", " x ".join(map(str, row["img_size"]))]
        top1 = "" if row["top1"] is None else f"{row['top1']:.2f}"
        table.append([name, *numbers, top1, ", ".join(row["weights"]) or "none published"])
    _say_table(table, right=(1, 2, 4))
    _say("Multiply-adds are those of one such image. Top-1 is what the authors claim on ImageNet-1k. Weights are tags:")
    _say("timm.create_model('NAME.TAG', pretrained=True); `timm-mobilevit-zoo weights` tells where their files are.")
    if all:
        _say("Of timm's own networks no claim is shown: timm's results tell their accuracies.")
    return 0


def _say_table(table: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows of cells, in columns of which some are numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        _say("  ".join(padded).rstrip())


def _pin(**args: Any) -> int:
    from timm_mobilevit_zoo.hub.weights import pin

    for row in pin(**args):
        at = f" at {row['revision']}" if row["revision"] else ""
        state = "pinned already" if row["known"] else "written" if args["write"] else "not pinned; --write records it"
        _say(f"{row['name']}{at}: sha256 {row['sha256']}, {row['bytes']:,} bytes ({state})")
    return 0


def _tell(folder: str, found: Mapping[str, Any]) -> int:
    _say(f"{folder}: {found['architecture']}, {found['num_classes']} classes, {found['params']:,} parameters")
    if "revision" in found:
        _say(f"revision {found['revision']}")
    for name, digest in found["sha256"].items():
        _say(f"{name} sha256 {digest}")
    return 0


def _push(yes: bool, hint: str = "--yes", **args: Any) -> int:
    from timm_mobilevit_zoo.hub import push

    found = push(**args, dry_run=not yes)
    what = "private" if found["private"] else "public"
    what += " repository" if found["exists"] else " repository, new"
    _say(f"{found['repo_id']} ({what}) on {found['endpoint']} as {found['account']}, branch {found['branch']}")
    for name, file in found["files"].items():
        _say(f"  {file['state']:8}{name}, {file['size']:,} bytes, sha256 {file['sha256']}")
    for name in found["delete"]:
        _say(f"  {'deleted' if yes else 'delete':8}{name}")
    if not yes:
        _say(f"nothing was changed; {hint} pushes")
    elif found["revision"] == found["parent"]:
        _say(f"nothing to push: revision {found['revision']}")
    else:
        _say(f"pushed: revision {found['revision']}")
    return 0


def _bench(**args: Any) -> int:
    sys.path.append(os.getcwd())  # for module:function; a console script's path has no working folder
    from timm_mobilevit_zoo.bench import bench, table

    rows = bench(**args)
    for line in table(rows).splitlines():
        _say(line)
    return 1 if any(row["error"] for row in rows) else 0


def _export(**args: Any) -> int:
    from timm_mobilevit_zoo.export import export

    found = export(**args)
    for name, file in found["files"].items():
        _say(f"{name}: {file['bytes'] / 2**20:.1f} MiB, sha256 {file['sha256']}")
    for kind, check in (found["checks"] or {}).items():
        share = f"{100 * check['top1']:.1f}% the same class"
        off = f"{check['error']:.1e} of the logits' deviation" + f", {check['rms']:.1e} on average" * ("int8" in found)
        _say(f"{check['images']} {kind} images: off by {off}, {share}")
        if "accuracy" in check:
            before, after = (100 * check["accuracy"][of] for of in ("eager", "file"))
            _say(f"accuracy on these: {before:.2f}% before, {after:.2f}% in the file")
    if "int8" in found:
        for layer in found["int8"]["layers"][:5]:
            _say(f"{layer['name']}: off by {100 * layer['error']:.1f}%")
    if not found["checks"]:
        _say(f"nothing here runs {found['format']}: the file was not compared with eager mode")
    return 0


def _page(serve: bool, port: int, models: Sequence[str], **args: Any) -> int:
    from timm_mobilevit_zoo import page

    if models or not serve:
        found = page.page(models, **args)
        for model in found["models"]:
            maps = f"{len(model['maps']['outputs'])} maps" if model["maps"] else "no attention that is recorded"
            _say(f"{args['output']}: {model['name']}, {model['bytes'] / 2**20:.1f} MiB, {maps}")
    if serve:
        page.serve(args["output"], port=port)
    else:
        _say(f"to look at it: timm-mobilevit-zoo page --serve -o {shlex.quote(args['output'])}")
    return 0


def _demo(**args: Any) -> int:
    from timm_mobilevit_zoo.train.demo import demo

    demo(**args)
    return 0


def _run(**args: Any) -> int:
    raise ValueError("run needs a script or -m MODULE")


def _completion(shell: str) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"shtab is not installed: {pip_line('completion')}", name="shtab") from None
    sys.stdout.write(shtab.complete(parser(), shell) + "\n")
    return 0


def _say(line: str) -> None:
    """Print a line, of which a stranger may have written a part."""
    sys.stdout.write(printable(line) + "\n")


COMMANDS: dict[str, Callable[..., int]] = {
    "train": _train,
    "predict": _predict,
    "maps": _maps,
    "check": _check,
    "convert": _convert,
    "push": _push,
    "pull": _pull,
    "weights": _weights,
    "pin": _pin,
    "export": _export,
    "bench": _bench,
    "page": _page,
    "demo": _demo,
    "models": _models,
    "run": _run,
    "completion": _completion,
}
