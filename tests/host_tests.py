"""Run timm's own per-model tests on every model that this package registers.

    python tests/host_tests.py [GLOB ...] [--timm-src DIR]

timm's wheel has no tests: they come from the source distribution of the installed version, or from `--timm-src`. They
parametrise themselves with `timm.list_models` while they are imported; for that time it lists our models only. Their
hand-kept lists of names say nothing about ours, so the class decides: a model of our own class is held to all standard
rules, and a new size of a class of timm's to whatever timm asks of its own models of that class.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from zoo import EVERY_SIZE, FIRST, NAMES, limits

CACHE = Path(__file__).resolve().parent.parent / ".host-tests"
REQUIRED = {  # of every timm; test_prune_intermediate_layers_contract and FIXED_LIST where it has them
    "test_model_backward",
    "test_model_backward_fx",
    "test_model_default_cfgs",
    "test_model_forward",
    "test_model_forward_features",
    "test_model_forward_fx",
    "test_model_forward_fx_torchscript",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_model_forward_torchscript",
}
# timm runs these on a fixed list of its models, but what they ask holds for each class of ours. The value is what a
# parameter set has after the name.
FIXED_LIST: dict[str, tuple[Any, ...]] = {
    "test_feature_getter_stage_ends_torchscript": (),
    "test_features_only_grad_checkpointing_backward": (),
    "test_head_hidden_size": ({},),
    "test_prune_intermediate_layers_params_used": (),
    "test_reset_classifier_keeps_pool": (),
}
DOWNLOADS = {"test_model_inference", "test_model_load_pretrained", "test_model_features_pretrained"}


class HostTests:
    """Pytest plugin that puts our models in the place of timm's and keeps the outcomes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.real_list_models = timm.list_models
        self.siblings: dict[str, set[str]] = {}  # for a model on a class of timm's: timm's names in that class's module
        for name in names:
            with torch.device("meta"):
                module = type(timm.create_model(name)).__module__
            siblings = timm.list_models(module=module.rpartition(".")[2]) if module.startswith("timm.") else ()
            self.siblings[name] = set(siblings)
        self.present: set[str] = set()  # test functions that this timm has
        self.items: dict[str, tuple[str, str]] = {}  # node id: test function, our name
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def list_models(
        self, filter: Any = "", module: Any = "", pretrained: bool = False, exclude_filters: Any = "", **options: Any
    ) -> list[str]:
        """Stand in for `timm.list_models`: list those of our models that timm's rules, read by class, mean."""
        listed = set(self.real_list_models(filter, module, exclude_filters=exclude_filters))
        kept = []
        for name, siblings in self.siblings.items():
            # By majority, as a rule may leave out single siblings for their size. A model without any is of our own
            # class: a rule that asks for certain names never means it, and one that excludes names never does either.
            meant = len(siblings & listed) > len(siblings) / 2 if siblings else not filter
            if meant and not pretrained:
                kept.append(name)
        return self.real_list_models(kept, include_tags=bool(options.get("include_tags"))) if kept else []

    def pytest_pycollect_makeitem(self, name: str, obj: Any) -> None:
        if name.startswith("test_"):
            self.present.add(name)
        if name in FIXED_LIST:
            more = FIXED_LIST[name]
            values = [(model, *more) if more else model for model in self.names if not self.siblings[model]]
            for i, mark in enumerate(getattr(obj, "pytestmark", [])):
                if mark.name == "parametrize" and "model_name" in mark.args[0]:
                    obj.pytestmark[i] = pytest.mark.parametrize(mark.args[0], values).mark

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            model = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
            arch = model.partition(".")[0] if isinstance(model, str) else ""
            if arch in self.names and item.originalname not in DOWNLOADS:
                self.items[item.nodeid] = item.originalname, arch
                if reason := limits(arch).get(item.originalname):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        items[:] = [item for item in items if item.nodeid in self.items]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif hasattr(report, "wasxfail"):
            self.outcomes[report.nodeid] = "limited"
            self.reasons[report.nodeid] = report.wasxfail
        elif report.skipped:
            self.outcomes.setdefault(report.nodeid, "skipped")
            self.reasons[report.nodeid] = str(report.longrepr[2] if type(report.longrepr) is tuple else report.longrepr)
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"

    def gaps(self) -> list[str]:
        """Say which tests should have run and did not: a rule that leaves us out must not look like success."""
        gaps = [f"this timm has no {test}" for test in sorted(REQUIRED - self.present)]
        optional = {"test_prune_intermediate_layers_contract", *FIXED_LIST}
        for name, siblings in self.siblings.items():
            due = (REQUIRED | optional) & self.present
            if siblings:  # timm spares its non-standard classes these
                due -= {"test_model_forward_features", *FIXED_LIST}
            ran = {self.items[nodeid] for nodeid, outcome in self.outcomes.items() if outcome != "skipped"}
            done = {test.removesuffix("_non_std") for test, model in ran if model == name}
            gaps += [f"{name} did not run {test}" for test in sorted(due - done)]
        return gaps


def unpack_tests(version: str) -> Path:
    """Return the folder with the tests of that timm, from its source distribution on the first call."""
    folder = CACHE / f"timm-{version}"
    if not (folder / "tests" / "test_models.py").is_file():
        CACHE.mkdir(exist_ok=True)
        # `timm`, not `:all:`, which would have pip build timm's build tools from source too.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "timm", f"timm=={version}"]
        pip = subprocess.run([*command, "--dest", str(CACHE)], capture_output=True, text=True)
        if pip.returncode:
            sys.exit(f"pip cannot get the source of timm {version} (--timm-src takes a copy):\n{pip.stderr[-2000:]}")
        with tarfile.open(CACHE / f"{folder.name}.tar.gz") as archive:
            members = [m for m in archive if m.name.startswith(f"{folder.name}/tests/")]
            safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(CACHE, members, **safe)
    return folder


def run(tests: Path, host: HostTests) -> int:
    """Run the tests and return pytest's exit status."""
    torch.set_num_threads(1)  # the models are small, and cores are often shared
    os.environ.pop("GITHUB_ACTIONS", None)  # timm leaves much out there, for the memory that its large models need
    vars(timm).update(list_models=host.list_models, list_pretrained=lambda *args, **kwargs: [])
    with tempfile.TemporaryDirectory() as scratch:  # away from the pytest settings of both projects and timm's source
        Path(scratch, "pytest.ini").write_text("[pytest]\n")
        for file in {"conftest.py", "test_models.py"} & set(os.listdir(tests)):
            shutil.copy(tests / file, scratch)
        options = ["-q", "--tb=short", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:warnings"]
        paths = ["-c", f"{scratch}/pytest.ini", f"--rootdir={scratch}", f"{scratch}/test_models.py"]
        return int(pytest.main([*options, *paths], plugins=[host]))


def main() -> int:
    """Run what the command line asks for, print the counts and return the exit status."""
    parser = argparse.ArgumentParser(description="Run timm's own per-model tests on the models of this package.")
    default = "one size of each family, all with EVERY_SIZE=1"
    parser.add_argument("globs", nargs="*", metavar="GLOB", help=f"names of models (default: {default})")
    parser.add_argument("--timm-src", type=Path, metavar="DIR", help="a checkout or unpacked source of timm")
    args = parser.parse_args()

    installed = importlib.metadata.distribution("timm")
    if Path(timm.__file__).resolve().parent != Path(str(installed.locate_file("timm"))).resolve():
        sys.exit(f"{timm.__file__} hides the installed timm {installed.version}")
    names = [name for name in NAMES if any(fnmatch(name, glob) for glob in args.globs)]
    if not args.globs:
        names = NAMES if EVERY_SIZE else FIRST
    if not names:
        sys.exit(f"none of {NAMES} matches {args.globs}")
    source = args.timm_src or unpack_tests(installed.version)
    host = HostTests(names)
    status = run(source / "tests", host)

    counts = Counter((host.items[nodeid][0], outcome) for nodeid, outcome in host.outcomes.items())
    total = Counter(host.outcomes.values())
    problems = host.gaps()
    if status and not total["failed"]:
        problems.append(f"pytest ended with status {status}")
    failed = total["failed"] + len(problems)

    print(f"\n{len(names)} models, {source / 'tests'}, timm {timm.__version__}, torch {torch.__version__}")
    for test in dict.fromkeys(test for test, _ in host.items.values()):
        print(f"{test:50}", *(f"{counts[test, o]:3} {o}" for o in ("passed", "failed", "skipped")))
    for nodeid, outcome in host.outcomes.items():
        if outcome != "passed":
            print(f"{outcome}: {nodeid.rpartition('::')[2]} {host.reasons.get(nodeid, '')}")
    for test in sorted(DOWNLOADS & host.present):
        print(f"not run, it downloads weights: {test}")
    for problem in problems:
        print(f"failed: {problem}")
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
