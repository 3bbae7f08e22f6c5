"""One thread: these models are small, and threads that wait for each other on a busy machine cost most of a run."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked slow, but with EVERY_SIZE=1 or where it is asked for by its mark."""
    if os.environ.get("EVERY_SIZE") == "1" or config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Three of the ten digits, 16 training and 4 validation images each."""
    from timm_mobilevit_zoo.demo import write_digits

    whole, few = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("few")
    assert write_digits(whole / "digits") == {"train": 1433, "val": 364}
    for split, count in (("train", 16), ("val", 4)):
        for digit in "013":
            (few / split / digit).mkdir(parents=True)
            for path in sorted((whole / "digits" / split / digit).iterdir())[:count]:
                shutil.copy(path, few / split / digit)
    return few


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory):
    """A run's folder and what `train` returned of it; nobody changes it."""
    from runs import ENOUGH, QUICK

    from timm_mobilevit_zoo.train import train

    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(str(digits), output=str(out), **QUICK | ENOUGH)
