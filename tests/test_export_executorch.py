"""Files for ExecuTorch: XNNPACK takes the whole of a network, and computes the same."""

import pytest
from zoo import EVERY_SIZE, FIRST, FIXED, create

from timm_mobilevit_zoo import export
from timm_mobilevit_zoo.models.probe import seed_weights


# Lowering takes half a minute to two a network: every family's with EVERY_SIZE=1, else one's.
@pytest.mark.parametrize("name", FIRST if EVERY_SIZE else ["cloformer_xxs"])
def test_xnnpack_takes_it_whole(name, tmp_path):
    size = {} if name in FIXED else {"size": (64, 96)}
    found = export.to_executorch(seed_weights(create(name)), str(tmp_path / "file.pte"), **size)
    assert found["xnnpack"] == {"regions": 1, "left": {}}
    assert found["checks"]["random"]["error"] < 1e-4
