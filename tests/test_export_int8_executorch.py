"""ExecuTorch's files in 8 bits: XNNPACK computes them, and nothing more is left to slower code than in float."""

import pytest
from zoo import FIXED, KINDS, create, write_blots

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.models.probe import seed_weights


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_blots(folder, 4)
    return str(folder)


@pytest.mark.parametrize("name", KINDS[1:])
def test_executorch(name, photos, tmp_path):
    network, size = seed_weights(create(name)), {} if name in FIXED else {"size": (32, 32)}
    whole = export.to_executorch(network, str(tmp_path / "whole.pte"), **size)
    found = export.to_executorch(network, str(tmp_path / "file.pte"), int8=photos, **size)
    assert found["checks"].keys() == {"calibration"}
    assert 1e-4 < found["checks"]["calibration"]["rms"] < 0.1, "float would be nearer"
    assert found["xnnpack"] == whole["xnnpack"] == {"regions": 1, "left": {}}
    assert (tmp_path / "file.pte").stat().st_size < 0.6 * (tmp_path / "whole.pte").stat().st_size
    errors = {layer["name"]: layer["error"] for layer in found["int8"]["layers"]}
    assert all(0 < error < 0.2 for error in errors.values())
    assert "head" in errors
