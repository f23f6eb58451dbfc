"""Imports that `import maskrcnn` needs, and the names it offers."""

from __future__ import annotations

import subprocess
import sys

import maskrcnn

# Stands in for an environment with PyTorch alone: every other distribution of ours fails to import. (torchvision
# itself imports PIL.)
BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
NOT_NEEDED = {
    "hotcoco", "hypothesis", "matplotlib", "psutil", "pycocotools", "pydantic", "rich", "safetensors",
    "scipy", "tensorboard", "torchcodec", "tyro",
}  # fmt: skip


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_needs_torch_torchvision_and_numpy_only() -> None:
    run(
        BLOCK.format(blocked=NOT_NEEDED)
        + "import maskrcnn, numpy as np, maskrcnn.structures, maskrcnn.ops\n"
        + "model = maskrcnn.build('mask_rcnn_R_50_FPN_3x', 3, tiny=True)\n"
        + "import torch\n"
        + "batch = model.eval().preprocess([torch.zeros(3, 64, 80, dtype=torch.uint8)])\n"
        + "assert model.detect(batch)[0].image_size == (64, 80)\n"
    )


def test_import_waits_for_torch_until_it_is_used() -> None:
    run("import sys, maskrcnn; maskrcnn.__version__; assert 'torch' not in sys.modules")


def test_large_tensors_get_large_pages_unless_the_user_decides() -> None:
    code = "import os; {first}import maskrcnn; assert os.environ['THP_MEM_ALLOC_ENABLE'] == '{wanted}'"
    run(code.format(first="os.environ.pop('THP_MEM_ALLOC_ENABLE', 0); ", wanted=1))
    run(code.format(first="os.environ['THP_MEM_ALLOC_ENABLE'] = '0'; ", wanted=0))


def test_threads_that_wait_sleep_soon_unless_the_user_decides() -> None:
    code = (
        "import os; os.environ.pop('GOMP_SPINCOUNT', 0); os.environ.pop('OMP_WAIT_POLICY', 0); "
        "os.environ.update({first}); "
        "import maskrcnn; assert os.environ.get('GOMP_SPINCOUNT') == {wanted!r}"
    )
    run(code.format(first={}, wanted="10000"))
    run(code.format(first={"GOMP_SPINCOUNT": "7"}, wanted="7"))
    run(code.format(first={"OMP_WAIT_POLICY": "ACTIVE"}, wanted=None))


def test_all_names_what_there_is() -> None:
    assert maskrcnn.__all__ == sorted(maskrcnn.__all__)
    assert dir(maskrcnn) == maskrcnn.__all__
    for name in maskrcnn.__all__:
        assert getattr(maskrcnn, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(maskrcnn, "laod")
