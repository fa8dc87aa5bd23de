"""One thread per process: the tests run side by side, and bit-for-bit comparisons need a fixed number."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
