"""Tests run on the CPU, where what they expect was recorded; `make gpu` runs those for a GPU."""

import os

GPU = "HYPERNOISE_GPU"  # set: tests see the GPU, and those of gpu/ are collected

if not os.environ.get(GPU):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks; processes that tests start too

collect_ignore = [] if os.environ.get(GPU) else ["gpu"]
