"""What each command does, and what it says of it. Only here is the package imported, once the words are right."""

import glob
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
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
    if best["val_top1"] is None:
        _say(f"epoch {best['epoch']:.0f} is kept, without validation")
    else:
        _say(f"best epoch {best['epoch']:.0f}: top-1 {best['val_top1']:.2f}%, loss {best['val_loss']:.4f}")
    _tell_next(best["output"])
    return 0


def _tell_next(run: str) -> None:
    """Say what to type next with the folder that a run has left."""
    from timm_mobilevit_zoo.models.names import our_models

    with open(os.path.join(run, "config.json"), encoding="utf-8") as file:
        is_ours = json.load(file)["architecture"] in our_models()
    folder, onnx = shlex.quote(run), shlex.quote(os.path.basename(os.path.abspath(run)) + ".onnx")
    _say(f"what the run has left is in {run}; next, for example:")
    _say(f"  timm-mobilevit-zoo predict {folder} IMAGE...")
    _say(f"  timm-mobilevit-zoo export {folder} --format onnx -o {onnx}")
    if is_ours:
        _say(f"  timm-mobilevit-zoo push {folder} OWNER/NAME --license mit   # or another licence; then with --yes")
    model = json.dumps(f"local-dir:{run}", ensure_ascii=False)
    _say(f"  import timm, timm_mobilevit_zoo; model = timm.create_model({model}, pretrained=True).eval()   # in Python")


def _predict(model: str, images: list[str], as_json: bool, trust: bool, **args: Any) -> int:
    from timm_mobilevit_zoo.common.progress import showing

    images = _listed(images, sys.stdin)
    results = _missing(images)
    if len(results) < len(images):  # or else no network is needed to say what there is to say
        from timm_mobilevit_zoo.models.loading import load
        from timm_mobilevit_zoo.train.predict import predict

        with showing():
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


def _listed(words: Iterable[str], lines: Iterable[str] | None = None) -> list[str]:
    """Return the images that `predict` is asked for: files, those of folders, of patterns, and of a list.

    Args:
        words: As they were typed.
        lines: What `-` stands for, a path a line; without them it is a file's name.

    Raises:
        ValueError: For a folder without images.
    """
    listed: list[str] = []
    for word in words:
        if word == "-" and lines is not None:
            listed += _listed(line for line in (line.rstrip("\r\n") for line in lines) if line.strip())
        elif os.path.isdir(word):
            from timm_mobilevit_zoo.common.images import images_in

            if not (found := images_in(Path(word))):
                raise ValueError(f"images: {word!r} is a folder without images")
            listed += map(str, found)
        elif not os.path.lexists(word) and (matches := sorted(glob.glob(word, recursive=True))):
            listed += _listed(matches)  # of a shell that leaves patterns to the program
        else:
            listed.append(word)
    return listed


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

    status = _tell(folder, check(folder))
    if os.path.isdir(os.path.join(folder, "checkpoints")):
        _say("checkpoints: left aside; nothing is loaded from there, and nothing pushed")
    if not os.path.isfile(os.path.join(folder, "README.md")):
        _say("README.md: missing; push writes this model card, given --license")
    return status


def _convert(push: str, yes: bool, private: bool, **args: Any) -> int:
    from timm_mobilevit_zoo.hub.convert import convert

    if push:
        from timm_mobilevit_zoo.hub.remote import check_repo_id

        check_repo_id(push)  # before the work
    elif yes or not private:
        raise ValueError("--yes and --no-private go with --push OWNER/NAME")
    found = convert(**args)
    _say(f"wrote {args['output']}: {_told_of(args['output'], found)}, the weights bit for bit")
    if not push:
        return 0
    hint = f"timm-mobilevit-zoo push {shlex.join([args['output'], push])} {'' if private else '--no-private '}--yes"
    return _push(folder=args["output"], repo_id=push, yes=yes, private=private, hint=hint)


def _told_of(folder: str, found: Mapping[str, Any]) -> str:
    """Return what network a folder holds, with the names of its classes, and for which images."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    names = config.get("label_names")
    named = f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})" if names else " without names"
    size = " x ".join(map(str, config["pretrained_cfg"]["input_size"][1:]))
    return f"{found['architecture']}, {found['num_classes']} classes{named}, images of {size} pixels"


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
    if found["card"]:
        _say(f"wrote {found['card']}, the model card: it is yours to edit before the push")
    what = "private" if found["private"] else "public"
    what += " repository" if found["exists"] else " repository, new"
    _say(f"{found['repo_id']} ({what}) on {found['endpoint']} as {found['account']}, branch {found['branch']}")
    for name, file in found["files"].items():
        _say(f"  {file['state']:8}{name}, {file['size']:,} bytes, sha256 {file['sha256']}")
    for name in found["delete"]:
        _say(f"  {'deleted' if yes else 'delete':8}{name}")
    if not yes:
        _say(f"nothing was changed on the Hub; {hint} pushes")
    elif found["revision"] == found["parent"]:
        _say(f"nothing to push: revision {found['revision']}")
    else:
        _say(f"pushed: revision {found['revision']}")
    return 0


def _bench(verbose: bool, **args: Any) -> int:
    sys.path.append(os.getcwd())  # for module:function; a console script's path has no working folder
    from timm_mobilevit_zoo.bench import bench, table

    with _telling(verbose):
        rows = bench(**args)
    for line in table(rows).splitlines():
        _say(line)
    return 1 if any(row["error"] for row in rows) else 0


@contextmanager
def _telling(verbose: bool) -> Iterator[None]:
    """Tell what long work does, and what converters say of it where that is asked."""
    from timm_mobilevit_zoo.common import progress, quiet

    with progress.showing(), quiet.verbose() if verbose else nullcontext():
        yield


def _export(verbose: bool, **args: Any) -> int:
    from timm_mobilevit_zoo.export import export

    with _telling(verbose):
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
    if "fp16" in found:
        top = found["fp16"]["layers"][0]
        where = top["name"] or "the network"
        _say(f"largest value in 16 bits: {100 * top['share']:.1f}% of what they hold, in {where}")
    if "int8" in found:
        for layer in found["int8"].get("layers", ())[:5]:
            _say(f"{layer['name']}: off by {100 * layer['error']:.1f}%")
    if "mlprogram" in found:
        _tell_of_coreml(found)
    elif not found["checks"]:
        told = found[found["backend"]]
        left = ", ".join(f"{count} {kind}" for kind, count in told["left"].items()) or "nothing"
        _say(f"{found['backend']} takes {told['regions']} region(s), and {left} is left")
        _say(f"nothing here runs executorch with {found['backend']}: the file was not compared with eager mode")
    return 0


def _tell_of_coreml(found: Any) -> None:
    told = found["mlprogram"]
    if found["checks"]:
        _say("nothing here runs coreml: torch computed what the operations in the file are defined to be")
    else:
        _say(f"nothing here runs coreml, and the file was not compared with eager mode: {told['not_compared']}")
    for one in told["leaves_neural_engine"].values():
        kinds = ", ".join(f"{count} {kind}" for kind, count in one["operations"].items())
        _say(f"may leave the Neural Engine: {kinds} ({one['why']})")


def _page(serve: bool, port: int, models: Sequence[str], verbose: bool, **args: Any) -> int:
    from timm_mobilevit_zoo import page

    if models or not serve:
        with _telling(verbose):
            found = page.page(models, **args)
        for model in found["models"]:
            maps = f"{len(model['maps']['outputs'])} maps" if model["maps"] else "no attention that is recorded"
            sizes = ", ".join(f"{file['precision']} {file['bytes'] / 2**20:.1f} MiB" for file in model["files"])
            _say(f"{args['output']}: {model['name']}, {sizes}, {maps}")
    if serve:
        page.serve(args["output"], port=port)
    else:
        _say(f"to look at it: timm-mobilevit-zoo page --serve -o {shlex.quote(args['output'])}")
    return 0


def _demo(**args: Any) -> int:
    from timm_mobilevit_zoo.train.demo import demo

    demo(**args)
    _tell_next(os.path.join(args["output"], "run"))
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
