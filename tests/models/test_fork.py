"""A pool of forked processes predicts, though the parent has computed with several threads before."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest

POOL = """
import multiprocessing, warnings
import numpy as np, torch, maskrcnn

warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
torch.set_num_threads(2)
model = maskrcnn.build("mask_rcnn_R_50_FPN_1x", num_classes=3, tiny=True).eval()
picture = np.zeros((200, 300, 3), np.uint8)

def count(_):
    return len(model.predict(picture, score_threshold=0.0)), torch.get_num_threads()

count(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(count, range(2)).get(100)
assert found == [(count(0)[0], 1)] * 2, found
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_processes_predict_with_one_thread():
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
