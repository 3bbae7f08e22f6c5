"""Files for ExecuTorch: XNNPACK takes the whole of a network, computes the same, and nothing more is left in 8 bits."""

import pytest
import torch
from packaging.version import Version
from zoo import EVERY_SIZE, FIXED, KINDS, NAMES, create, write_blots

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.models.probe import seed_weights

pytestmark = pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="ExecuTorch wants a newer torch")
# Lowering takes half a minute to two a network: all with EVERY_SIZE=1, else one block of one.
LOWERED = pytest.mark.parametrize("name", NAMES if EVERY_SIZE else KINDS[1:])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_blots(folder, 4)
    return str(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Networks, their files in float and the manifests of these, each written once."""
    made = {}

    def write(name):
        if name not in made:
            network = seed_weights(create(name, **({} if EVERY_SIZE else {"depth": 1})))
            path = tmp_path_factory.mktemp("whole") / "file.pte"
            size = {} if name in FIXED else {"size": (64, 96)}
            made[name] = network, path, export.to_executorch(network, str(path), **size), size
        return made[name]

    return write


@LOWERED
def test_xnnpack_takes_it_whole(name, whole):
    _, _, found, _ = whole(name)
    assert found["xnnpack"] == {"regions": 1, "left": {}}
    assert found["checks"]["random"]["error"] < 1e-4


@LOWERED
def test_in_8_bits(name, whole, photos, tmp_path):
    network, path, float_found, size = whole(name)
    found = export.to_executorch(network, str(tmp_path / "file.pte"), int8=photos, **size)
    assert found["checks"].keys() == {"calibration"}
    assert 1e-4 < found["checks"]["calibration"]["rms"] < 0.1, "float would be nearer"
    assert found["xnnpack"] == float_found["xnnpack"]
    assert (tmp_path / "file.pte").stat().st_size < 0.6 * path.stat().st_size
    errors = {layer["name"]: layer["error"] for layer in found["int8"]["layers"]}
    assert all(0 < error < 0.2 for error in errors.values())
    assert "head" in errors
