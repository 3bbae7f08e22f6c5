"""Importing the package takes nothing away from timm."""

import pkgutil
import subprocess
import sys

import timm.models
from zoo import FIRST, family

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

TAKEN = """
import sys, types, warnings, timm, torch
Fake = type("Fake", (torch.nn.Module,), {{}})
fake = types.ModuleType("timm.models.{name}")  # as a future timm may have it
fake.Fake = Fake
exec('default_cfgs = {{}}\\ndef {name}(pretrained=False, **kwargs): return Fake()', vars(fake))
sys.modules[fake.__name__] = fake
timm.models.register_model(vars(fake)["{name}"])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import timm_mobilevit_zoo
from timm_mobilevit_zoo import hub
told = [str(warning.message) for warning in caught if "{name}" in str(warning.message)]
assert len(told) == 1 and told[0].endswith("Those of timm_mobilevit_zoo are called zoo_{name}"), told
assert timm.model_entrypoint("{name}") is vars(fake)["{name}"]
assert type(timm.create_model("{name}")) is Fake

model = timm.create_model("zoo_{name}", num_classes=3).eval()
cfg = timm.get_pretrained_cfg("zoo_{name}")
assert type(model).__module__ == timm.model_entrypoint("zoo_{name}").__module__ == "{module}"
assert model.pretrained_cfg["architecture"] == cfg.architecture == "zoo_{name}"
assert cfg.tag and cfg.license and timm.is_model("zoo_{name}." + cfg.tag)
assert timm.create_model("zoo_{name}", features_only=True).feature_info.channels()
from {module} import *

hub.export(model, "here", card={{"license": "mit"}})
assert hub.check("here")["architecture"] == "zoo_{name}"
text = open("here/config.json").read()
open("here/config.json", "w").write(text.replace("zoo_{name}", "{name}"))  # as from where timm lacks the name
assert hub.check("here")["architecture"] == "zoo_{name}"
"""


def test_a_name_that_timm_takes_stays_timms(tmp_path):
    name = FIRST[0]
    code = TAKEN.format(name=name, module=family(name))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
