"""One thread: these models are small, and threads that wait for each other on a busy machine cost most of a run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

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
