"""Importing the package takes nothing away from timm."""

import pkgutil
import subprocess
import sys

import timm.models

import timm_mobilevit_zoo.models

IMPORT = """
import timm
theirs = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
tags = set(timm.list_models(include_tags=True))
import timm_mobilevit_zoo
ours = set(timm.list_models()) - set(theirs)
assert ours, "no model was registered"
assert all(timm.model_entrypoint(name).__module__ == module for name, module in theirs.items())
assert all(timm.model_entrypoint(name).__module__.startswith("timm_mobilevit_zoo.models.") for name in ours)
assert tags <= set(timm.list_models(include_tags=True))
families = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in ours}
assert all(set(timm.list_models(module=family)) <= ours for family in families)
assert ours == {name for family in families for name in timm.list_models(module=family)}
"""


def test_import_in_a_fresh_process_with_warnings_as_errors():
    # numpy and torch warn of each other's versions; a name that is overwritten is a UserWarning of timm's registry.
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", IMPORT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_no_module_is_called_as_one_of_timms():
    theirs = {module.name for module in pkgutil.iter_modules(timm.models.__path__)}
    ours = {module.name for module in pkgutil.iter_modules(timm_mobilevit_zoo.models.__path__)}
    assert not theirs & {name for name in ours if not name.startswith("_")}
