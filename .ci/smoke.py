"""Try an installed maskrcnn: run with the Python of the environment that it was installed into, from any folder.

    python .ci/smoke.py

Imports it, runs `maskrcnn --version` and `maskrcnn list`, saves a tiny model with random weights, and predicts with it
on a picture drawn here. Nothing is downloaded. It ends with one line, or with the first error.
"""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import maskrcnn
from maskrcnn import presets, processor
from maskrcnn.data.synthetic import make_synthetic
from maskrcnn.weights.convert import write_as

NAME = "mask_rcnn_mobilenet_v2_FPN"


def main() -> None:
    home = Path(maskrcnn.__file__).resolve()
    assert home.is_relative_to(Path(sys.prefix).resolve()), f"imported from {home}, not from the environment"
    assert (home.parent / "py.typed").is_file(), "py.typed is missing: the types would not be seen"
    assert maskrcnn.__version__ == metadata.version("maskrcnn")
    assert command("--version") == f"maskrcnn {maskrcnn.__version__}"
    listed = command("list")
    assert all(name in listed for name in presets.PRESETS), "a preset is not listed"
    with tempfile.TemporaryDirectory() as folder:
        predict(Path(folder))
    print(f"smoke test passed: maskrcnn {maskrcnn.__version__}, {processor.describe().line()}")


def predict(folder: Path) -> None:
    model, weights, out = maskrcnn.build(NAME, tiny=True), folder / "tiny.safetensors", folder / "found"
    write_as(weights, model.config, model.state_dict())
    make_synthetic(folder / "pictures", num_train=1, num_val=0)
    picture = next((folder / "pictures").rglob("*.jpg"))
    command("predict", picture, "--model", weights, "--out", out, "--score-threshold", 0)
    found = json.loads((out / "predictions.json").read_text())
    assert found, "nothing found with every score allowed"
    assert {entry["image_id"] for entry in found} == {picture.stem}
    assert (out / f"{picture.stem}.jpg").stat().st_size > 0


def command(*words: object) -> str:
    """Run the installed `maskrcnn` command and return what it printed."""
    program = Path(sys.executable).with_name("maskrcnn")
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"maskrcnn {words[0]}: exit status {done.returncode}\n{done.stderr}"
    return done.stdout.strip()


if __name__ == "__main__":
    main()
