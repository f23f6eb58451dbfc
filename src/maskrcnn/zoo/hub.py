"""Models on the Hugging Face hub: `load("hf://USER/NAME")`, and `push_to_hub`, which writes a card for people.

A model there is `model.safetensors` of ours, which carries its config; nothing else is downloaded. Which hub it is,
its cache and the token are the settings of `huggingface_hub` (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskrcnn.errors import UserError, one_line

SCHEME = "hf://"
FILE = "model.safetensors"
NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
EXTRA = "Run: pip install 'maskrcnn[hub]'"


def fetch(address: str) -> Path:
    """Download the model of an address, hf://USER/NAME or hf://USER/NAME@REVISION, to the hub's cache, once.

    Raises:
        UserError: not such an address, no such model, no file of ours in it, or the hub cannot be reached.
    """
    repo, revision = _parts(address)
    hub = _import_hub()
    with _told(address):
        return Path(hub.hf_hub_download(repo, FILE, revision=revision, library_name="maskrcnn"))


def push_to_hub(
    model: str | Path, name: str, *, licence: str = "other", private: bool = False, token: str | None = None
) -> str:
    """Upload a trained model to the hub as `name`, USER/NAME, with a card, and return its page's address.

    model: a run folder or a safetensors file of ours. licence: of the weights, as the hub names it (apache-2.0,
    cc-by-4.0 ...); the training pictures' may bind it. The card has classes, scores, data and how to use the model.

    Raises:
        UserError: no such model, a file of somebody else's, or the hub refuses it.
    """
    repo, revision = _parts(name if name.startswith(SCHEME) else SCHEME + name)
    if revision is not None:
        raise UserError(f"push: {name}: expected USER/NAME, got a revision too. Leave it out.")
    path = Path(model)
    text = card(path, repo, licence)
    weights = path / FILE if path.is_dir() else path
    hub = _import_hub()
    with _told(name), tempfile.TemporaryDirectory() as folder:
        readme = Path(folder) / "README.md"
        readme.write_text(text, encoding="utf-8")
        api = hub.HfApi(token=token, library_name="maskrcnn")
        api.create_repo(repo, private=private, exist_ok=True)
        files = [
            hub.CommitOperationAdd("README.md", readme),
            hub.CommitOperationAdd(FILE, weights),
        ]
        commit = api.create_commit(repo, files, commit_message="A Mask R-CNN and its card")
    return str(commit.commit_url).split("/commit/")[0]


def card(model: Path, repo: str, licence: str = "other") -> str:
    """Model card (Mitchell et al. 2019) in the hub's form: metadata as YAML, and text.

    Raises:
        UserError: no such model, or a file without its config.
    """
    from maskrcnn.config import ModelConfig
    from maskrcnn.weights.load import read_weights

    weights = model / FILE if model.is_dir() else model
    if model.is_dir() and not weights.is_file():
        raise UserError(f"{model}: expected {FILE} of a finished run in it, got none. Finish the run first.")
    config = read_weights(weights).config
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"{model}: expected a model of maskrcnn, which carries its config, got weights alone."
        )
    classes = config.class_names or tuple(f"class {k}" for k in range(config.num_classes))
    run = model if model.is_dir() else model.parent
    head = [
        "---",
        "library_name: maskrcnn",
        "pipeline_tag: image-segmentation",
        f"license: {licence}",
        "tags: [instance-segmentation, mask-rcnn]",
        "---",
    ]
    body = [
        f"# {repo.split('/')[1]}",
        "",
        f"Instance segmentation with Mask R-CNN ({config.name}): a box, a class, a score and a mask of each object.",
        "",
        "## Use",
        "",
        "```sh",
        "pip install 'maskrcnn[hub]'",
        f"maskrcnn predict photo.jpg --model hf://{repo} --out out",
        "```",
        "",
        "```python",
        "import maskrcnn",
        "",
        f'model = maskrcnn.load("hf://{repo}")',
        'instances = model.predict("photo.jpg")',
        "```",
        "",
        f"Classes: {', '.join(classes[:100])}{', ...' if len(classes) > 100 else ''}.",
        f"Pictures are resized to {config.input.min_size} pixels on the shorter side, at most "
        f"{config.input.max_size} on the longer.",
        "",
        *_training(run),
        f"Licence of the weights: {licence}.",
    ]
    return "\n".join([*head, "", *body, ""])


def _training(run: Path) -> list[str]:
    """Lines on a run's data and scores, as far as its folder tells them."""
    import json

    lines: list[str] = []
    if (run / "config.json").is_file():
        data = json.loads((run / "config.json").read_text()).get("data", {})
        named = {part: Path(data[part]).name for part in ("train", "val") if data.get(part)}
        if named:
            lines += ["## Data", "", *(f"- {part}: {name}" for part, name in named.items()), ""]
    scores = _best_scores(run / "log.jsonl")
    if scores:
        lines += ["## Scores", "", "COCO's numbers on the validation data:", "", "| | AP | AP50 | AP75 |"]
        lines += ["|---|---:|---:|---:|"]
        for kind, what in (("bbox", "boxes"), ("segm", "masks"), ("keypoints", "key points")):
            if kind in scores:
                ap = (scores[kind].get(name) for name in ("AP", "AP50", "AP75"))
                lines.append(f"| {what} | {' | '.join('-' if a is None else f'{100 * a:.1f}' for a in ap)} |")
        lines.append("")
    return lines


def _best_scores(log: Path) -> dict[str, Any]:
    from maskrcnn.training.runlog import read_log

    evaluations = [e for e in read_log(log) if e["kind"] == "eval"]
    best = [e for e in evaluations if e.get("best")] or evaluations
    return best[-1] if best else {}


def _parts(address: str) -> tuple[str, str | None]:
    """Name and revision of an address."""
    found = NAME.fullmatch(address.removeprefix(SCHEME))
    if found is None:
        raise UserError(f"{address}: expected hf://USER/NAME or hf://USER/NAME@REVISION. Check it.")
    return found[1], found[2]


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"hf://: expected the package huggingface_hub, got none. {EXTRA}") from None
    return huggingface_hub


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what the hub or the way to it says into one line."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{address}: the hub asks for its terms to be accepted first. Do so on its page, and log in."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{address}: the hub has no such model, or not for you. Check the name, or log in."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{address}: the model has no such revision. Check it.") from None
    except errors.EntryNotFoundError as e:
        if isinstance(e, errors.LocalEntryNotFoundError):
            raise UserError(
                f"{address}: the hub cannot be reached, and the file is not in its cache. Try again."
            ) from None
        raise UserError(
            f"{address}: expected {FILE} of maskrcnn in it, got none. It is another library's."
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise UserError(f"{address}: the hub says: {one_line(str(e))[:200]}") from None
