"""The command line: each command calls one function, whose signature and docstring are its options and its help."""

import argparse
import inspect
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["main"]

SHORT = {"model": "-m", "output": "-o", "epochs": "-e", "batch_size": "-b"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 failed or some images unreadable, 2 wrong input, 130 interrupted.

    Args:
        argv: Arguments after the program's name; the process's own where not given.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:2] == ["--traceback", "run"]:  # a script's errors show where they come from anyway
        argv = argv[1:]
    if argv[:1] == ["run"] and argv[1:2] not in (["-h"], ["--help"]):  # what follows belongs to the script
        from . import launch

        return launch.run(argv[1:])
    args = vars(_parser().parse_args(argv))
    command, trace = args.pop("command"), args.pop("traceback")
    try:
        sys.exit(command(**args))
    except BrokenPipeError:  # whoever read our output has gone; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if trace:
            raise
        if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
            sys.stderr.write(f"timm-mobilevit-zoo: error: {error}\n")
            sys.exit(2)
        sys.stderr.write(f"timm-mobilevit-zoo: {type(error).__name__}: {error}\n(--traceback shows where)\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("timm-mobilevit-zoo: interrupted\n")
        sys.exit(130)


def _train(**args: Any) -> int:
    from .train import train

    best = train(**args)
    _say(f"best epoch {best['epoch']:.0f}: top-1 {best['val_top1']:.2f}%, loss {best['val_loss']:.4f}")
    _say(f"load it with timm.create_model('local-dir:{best['output']}', pretrained=True)")
    return 0


def _predict(model: str, images: list[str], as_json: bool, **args: Any) -> int:
    from .predict import load, predict

    results = predict(load(model), images, **args)
    if as_json:
        for line in json.dumps(results, indent=2).splitlines():
            _say(line)
    else:
        for result in results:
            classes = result.get("classes", ())
            found = "  ".join(f"{entry['label']} {100 * entry['probability']:.1f}%" for entry in classes)
            _say(f"{result['image']}: {found}" if found else result["error"])
    return 1 if any("error" in result for result in results) else 0


def _maps(**args: Any) -> int:
    from .maps import draw_file

    draw_file(**args)
    return 0


def _check(folder: str) -> int:
    from .hub import check

    return _tell(folder, check(folder))


def _convert(push: str = "", yes: bool = False, private: bool = True, **args: Any) -> int:
    from .convert import convert

    if push:
        from ._remote import check_repo_id

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
    from .hub import pull

    found = pull(**args)
    return _tell(found["path"], found)


def _tell(folder: str, found: Mapping[str, Any]) -> int:
    _say(f"{folder}: {found['architecture']}, {found['num_classes']} classes, {found['params']:,} parameters")
    if "revision" in found:
        _say(f"revision {found['revision']}")
    for name, digest in found["sha256"].items():
        _say(f"{name} sha256 {digest}")
    return 0


def _push(yes: bool, hint: str = "--yes", **args: Any) -> int:
    from .hub import push

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
    from .bench import bench, table

    rows = bench(**args)
    for line in table(rows).splitlines():
        _say(line)
    return 1 if any(row["error"] for row in rows) else 0


def _export(**args: Any) -> int:
    from .export import export

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


def _page(serve: bool, port: int, models: Sequence[str] = (), **args: Any) -> int:
    from . import page

    if port and not serve:
        raise ValueError("--port goes with --serve")
    page.check_port(port)  # before the work
    if models or not serve:
        found = page.page(models, **args)
        for model in found["models"]:
            maps = f"{len(model['maps']['outputs'])} maps" if model["maps"] else "no attention that is recorded"
            _say(f"{args['output']}: {model['name']}, {model['bytes'] / 2**20:.1f} MiB, {maps}")
    if serve:
        page.serve(args["output"], port=port)
    return 0


def _demo(**args: Any) -> int:
    from .demo import demo

    demo(**args)
    return 0


def _run(**args: Any) -> int:
    raise ValueError("run needs a script or -m MODULE")


def _say(line: str) -> None:
    """Print a line, of which a stranger may have written a part."""
    from ._checks import printable

    sys.stdout.write(printable(line) + "\n")


def _parser() -> argparse.ArgumentParser:
    from . import __version__, bench, convert, demo, export, hub, maps, page, predict, train

    parser = argparse.ArgumentParser(
        prog="timm-mobilevit-zoo", description="Light-weight vision transformers for timm."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_options(_add_command(commands, "train", _train, train.train), train.train)

    one = _add_command(commands, "predict", _predict, predict.predict)
    one.add_argument(
        "model", metavar="FOLDER", help="folder of weights, or a name that timm has weights for, as hf-hub:OWNER/NAME"
    )
    one.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    one.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    _add_options(one, predict.predict, leave_out=("model", "images"))

    _add_options(_add_command(commands, "maps", _maps, maps.draw_file), maps.draw_file)

    one = _add_command(commands, "check", _check, hub.check)
    _add_options(one, hub.check, leave_out=("architectures",))

    one = _add_command(commands, "convert", _convert, convert.convert)
    _add_options(one, convert.convert)
    one.add_argument(
        "--push", metavar="OWNER/NAME", default=argparse.SUPPRESS, help="push the folder there, as push does"
    )
    _add_yes(one)
    _add_options(one, hub.push, leave_out=("folder", "repo_id", "dry_run", "branch", "message", "token"))

    one = _add_command(commands, "push", _push, hub.push)
    _add_options(one, hub.push, leave_out=("dry_run", "token"))
    _add_yes(one)

    one = _add_command(commands, "pull", _pull, hub.pull)
    _add_options(one, hub.pull, leave_out=("cache_dir", "token"))

    _add_options(_add_command(commands, "export", _export, export.export), export.export)

    _add_options(_add_command(commands, "bench", _bench, bench.bench), bench.bench)

    one = _add_command(commands, "page", _page, page.page)
    one.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="folders that train left, or names that timm creates with weights; none to serve a page that is there",
    )
    _add_options(one, page.page, leave_out=("models",))
    one.add_argument("--serve", action="store_true", help="serve the page on this machine, until Ctrl-C")
    _add_options(one, page.serve, leave_out=("folder",))

    _add_options(_add_command(commands, "demo", _demo, demo.demo), demo.demo)

    run = commands.add_parser("run", help="Run a script, one of timm's for example, with the zoo's models registered.")
    run.add_argument("script", metavar="SCRIPT | -m MODULE", help="the script or module")
    run.add_argument("args", nargs="...", help="its own arguments")
    run.set_defaults(command=_run)
    return parser


def _add_command(commands: Any, name: str, call: Callable[..., int], function: Callable[..., Any]) -> Any:
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    parser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(command=call)
    return parser


def _add_yes(parser: Any) -> None:
    parser.add_argument("--yes", action="store_true", help="push; without it, only show what would be pushed")


def _add_options(parser: Any, function: Callable[..., Any], leave_out: Sequence[str] = ()) -> None:
    hints, texts = get_type_hints(function), _argument_texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in leave_out:
            continue
        kind, text = hints[name], texts[name].replace("%", "%%")
        if get_origin(kind) in (Union, UnionType):  # Python 3.10 turns `int | None = None` into the former
            kind = next(one for one in get_args(kind) if one is not NoneType)
        required = parameter.default is parameter.empty
        several: dict[str, Any] = {}
        if get_origin(kind) is Sequence:
            kind, several = get_args(kind)[0], {"nargs": "+"}
            text += f" (default: {' '.join(map(str, parameter.default))})" if not required and parameter.default else ""
        if required and parameter.kind is not parameter.KEYWORD_ONLY:
            parser.add_argument(name, metavar=name.upper().removesuffix("S" if several else ""), help=text, **several)
            continue
        flags = [*filter(None, [SHORT.get(name)]), "--" + name.replace("_", "-")]
        options: dict[str, Any] = {"dest": name, "help": text, **several}
        if kind is bool:
            options |= {"action": argparse.BooleanOptionalAction, "default": parameter.default}
        else:
            options |= {"required": required, "default": parameter.default}
            if get_origin(kind) is Literal:
                options |= {"choices": get_args(kind)}
            elif get_origin(kind) is tuple:
                options |= {"type": get_args(kind)[0], "nargs": len(get_args(kind)), "metavar": "X"}
            else:
                options |= {"type": kind, "metavar": "X" if kind is float else "N" if kind is int else "NAME"}
            if required or several or parameter.default in (None, ""):
                options["default"] = argparse.SUPPRESS  # the function's own default; none worth printing
        parser.add_argument(*flags, **options)


def _argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return what a Google-style docstring says of each argument."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    entries = re.split(r"\n(?=\w)", textwrap.dedent(section[1])) if section else []
    pairs = (entry.partition(":") for entry in entries)
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs}
