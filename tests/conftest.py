"""One thread: these models are small, and threads that wait for each other on a busy machine cost most of a run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
