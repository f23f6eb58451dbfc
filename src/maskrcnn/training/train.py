"""Training from a config to a run folder: data, model, validation, and the loop over them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn import processor
from maskrcnn.config import AugmentConfig, Config, DataConfig, InputConfig, ModelConfig, from_file
from maskrcnn.data.ahead import on_device_ahead
from maskrcnn.data.anchors import fitted_sizes
from maskrcnn.data.bands import adopt_bands, measure_bands
from maskrcnn.data.coco import CocoData
from maskrcnn.data.export import to_coco
from maskrcnn.data.find import find_data, read_data
from maskrcnn.data.keypoint_names import mirrored_pairs
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.pictures import StillReadable
from maskrcnn.data.quality.check import checked
from maskrcnn.data.source import Source
from maskrcnn.data.split import split_off
from maskrcnn.engines.prepare import for_training, prepare
from maskrcnn.errors import UserError
from maskrcnn.evaluation.inference import autocast, begin_inference, predict_stream, run_inference
from maskrcnn.evaluation.scores import EvaluationResult, evaluate_results, scored_kinds
from maskrcnn.evaluation.truth import Truth, load_truth
from maskrcnn.images.bands import check_band_files
from maskrcnn.models.build import build_model
from maskrcnn.models.mask_rcnn import MaskRCNN
from maskrcnn.training import checkpoint as disk
from maskrcnn.training import distributed
from maskrcnn.training.distributed import Process
from maskrcnn.training.lock import run_lock
from maskrcnn.training.runlog import Display
from maskrcnn.training.settings import check_settings
from maskrcnn.training.trainer import Batch, Later, Trainer, TrainResult
from maskrcnn.weights.load import WeightFile, load_weights, read_weights

VALIDATION_LOSS_IMAGES = 500  # at most, in the order of a fixed seed: the curve needs no more


Choose = Callable[[Config, int, Process, bool], str]  # what `train` does with its argument `choose`


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    choose: Choose | None = None,
) -> TrainResult:
    """Train by `config` into the folder `out`; under `torchrun`, on all its processes.

    `choose` may change the config once the number of training images is known and whether the initial weights are a
    detector's, and returns a sentence on it.

    The classes are taken from the data set into `config.model`. With `resume` an interrupted run goes on from
    its last complete checkpoint, or starts if it has none. Files: see `training.checkpoint`; log: `training.runlog`.

    Raises:
        UserError: anything wrong with settings, data, weights or the output folder, before training;
            a loss that is not finite, or a full disk, during it.
        Interrupted: by SIGTERM or SIGINT (`training.interrupt`), after writing a checkpoint.
        LostProcessError: another process has died.
    """
    out = Path(out)
    process = distributed.join(device)
    try:
        with distributed.told_of_lost_processes(), contextlib.ExitStack() as held:
            distributed.on_main(lambda: held.enter_context(run_lock(out)))
            return _train(config, out, process, resume, choose)
    finally:
        distributed.leave()


def _train(config: Config, out: Path, process: Process, resume: bool, choose: Choose | None) -> TrainResult:
    display, notes = Display(active=process.is_main), list[str]()
    if choose is None:
        check_settings(config, process)
    start = distributed.on_main(lambda: disk.claim(out, resume=resume, say=notes.append))
    settle_precision(config, out, process, display.say)
    train_data, val_data = open_data(config.data, display.say, config.model)
    adopt_classes(config, train_data, display.say)
    adopt_anchors(config, train_data, display.say)
    train_data = adopt_keypoints(config, train_data, display.say)
    weights = read_weights(config.train.weights) if start is None and config.train.weights else None
    if choose is not None:
        detector = weights is not None and weights.kind != "backbone"
        if said := choose(config, int((train_data.num_objects > 0).sum()), process, detector):
            display.say(said)
        check_settings(config, process)
    model = initial_model(config, weights, display.say if start is None else None)
    del weights  # as large as the model
    trainer = Trainer(
        model,
        config,
        out,
        batches=batches_of(config, train_data, process),
        validate=None if val_data is None else validation(config, val_data, process, display.say),
        process=process,
        resume_from=start,
        display=display,
        notes=notes,
        pictures=train_data.names_digest(),
        draw=None if val_data is None else partial(draw_some, data=val_data),
    )
    return trainer.run()


def settle_precision(config: Config, out: Path, process: Process, say: Callable[[str], object]) -> None:
    """Turn the precision `auto` into that of the run in `out`, else into the one that is fast here; tell which.

    The run's config keeps it, so that a run goes on as it began, also on another machine.
    """
    wanted, saved = config.train.precision, out / "config.json"
    if wanted != "auto":
        if remark := processor.remark(wanted, process.device):
            say(f"precision: {remark}")
        return
    if saved.is_file():
        config.train.precision = from_file(saved).train.precision
        return
    config.train.precision = distributed.on_main(lambda: processor.fast_precision(process.device))
    say(
        f"precision: {config.train.precision}, the faster one on this machine (--train.precision chooses another)"
    )


def open_data(
    config: DataConfig, say: Callable[[str], object], model: ModelConfig
) -> tuple[CocoData, CocoData | None]:
    """The training and the validation set for the model's heads, checked; defects are repaired and told, or refused.

    What a model of bands lacks to know of them is measured on the training set. A folder given as `train` may hold the
    validation set too; `val` overrides it. Without either, `val_fraction` of
    the images is split off, always the same ones.
    """
    if not config.train:
        raise UserError("--data: expected a data set's folder or label file, got none. Give its path.")
    check_band_files(model.input)
    keypoints = model.keypoint_head is not None
    sources = find_data(config.train, config.train_images, config.format, keypoints)
    train = _open(sources.train, config, "training", say, model)
    settle_bands(model.input, train, say)
    source = sources.val
    if config.val:
        found = find_data(config.val, config.val_images, config.format, keypoints)
        source = found.val or found.train
    if source is not None:
        return train, _open(source, config, "validation", say, model, train)
    if not config.val_fraction:
        return train, None
    rest, val = split_off(train, config.val_fraction)
    if not val.num_images:
        say("validation: none, since too few images have objects")
        return train, None
    say(
        f"validation: no part for it was found, so {val.num_images} of the {train.num_images} images are kept out of "
        "training, always the same ones (--data.val_fraction 0 trains on all, --val gives others)"
    )
    return rest, val


def _open(
    source: Source,
    config: DataConfig,
    role: str,
    say: Callable[[str], object],
    model: ModelConfig,
    like: CocoData | None = None,
) -> CocoData:
    """Open and check one part; with the classes of `like`, the training set."""
    data = read_data(source, like.class_names, like.category_ids) if like else read_data(source)
    masks = model.mask_head is not None
    data, report = checked(data if masks else data.without_masks(), config.on_error, input=model.input)
    say(
        f"{role}: {data.num_images} images, {int(data.num_objects.sum())} objects from {source.labels} "
        f"({source.format})"
    )
    for line in report.lines(limit=3):
        say(f"  {line}")
    return data


def adopt_classes(config: Config, data: CocoData, say: Callable[[str], object]) -> None:
    """Put the data set's classes into the model's config, and for a federated loss how many images have each."""
    names = data.class_names
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    say(f"{len(names)} class{'es' * (len(names) > 1)} from the data set: {shown}")
    config.model.num_classes = len(names)
    config.model.class_names, config.model.category_ids = names, data.category_ids
    counts = ()
    if config.model.box_head.federated_classes:
        counts = tuple(np.bincount(data.classes_of_images()[:, 1], minlength=len(names)).tolist())
    config.model.box_head.class_image_counts = counts


def settle_bands(c: InputConfig, data: CocoData, say: Callable[[str], object]) -> None:
    """Measure what a model of bands needs to know of them, unless its settings say it all."""
    given = len(c.stretch) == len(c.pixel_mean) == len(c.pixel_std) == c.channels
    if not c.channels or (given and c.depth):
        return
    bands = distributed.on_main(lambda: measure_bands(data, c))
    adopt_bands(c, bands)
    for number, band in enumerate(bands):
        say(f"band {number}: {band.line()}")


def adopt_anchors(config: Config, data: CocoData, say: Callable[[str], object]) -> None:
    """Put anchor sizes that fit the data set into the model's config, where it asks for them by `auto`."""
    if config.model.rpn.anchor_sizes == "auto":
        sizes = config.model.rpn.anchor_sizes = fitted_sizes(config.model, data)
        say(
            f"anchors from the data set, in pixels of the network: {' '.join(f'{s:g}' for of in sizes for s in of)}"
        )


def adopt_keypoints(config: Config, data: CocoData, say: Callable[[str], object]) -> CocoData:
    """Put the data set's key points into the config of a model that has them.

    Returns the images to learn from: those without a visible key point are left out, unless empty ones are wanted.
    """
    head = config.model.keypoint_head
    if head is None:
        return data
    if not data.num_visible_keypoints.any():
        raise UserError(
            f"{data.json_path}: expected objects with key points for this model, got none. Give a data set that has "
            "`keypoints`, or train a model without them."
        )
    known = not data.keypoint_names or data.keypoint_names == head.names
    if not known or data.num_keypoints != head.num_keypoints:
        names, given = data.keypoint_names, () if head.names else head.flip_pairs
        head.num_keypoints, head.names, head.skeleton = data.num_keypoints, names, data.skeleton
        head.flip_pairs = mirrored_pairs(names) if names else given
        say(
            f"{data.num_keypoints} key points from the data set; left and right change places in mirrored images: "
            f"{len(head.flip_pairs)} pairs"
        )
    seen = data.num_visible_keypoints > 0
    if not config.data.skip_empty or seen.all():
        return data
    say(f"images without a visible key point, left out of training: {int((~seen).sum())}")
    return data.subset(seen)


def initial_model(
    config: Config, weights: WeightFile | None, say: Callable[[str], object] | None
) -> MaskRCNN:
    """The model with its initial weights, or random ones; without `say`, those that a checkpoint will replace."""
    torch.manual_seed(config.train.seed)  # alike on every process
    model = for_training(build_model(config.model))
    if say is None:
        return model
    if weights is None:
        say("initial weights: random")
        return model
    notes = load_weights(model, weights, new_head=True)
    for line in notes or [f"initial weights: {config.train.weights}"]:
        say(line)
    return model


def batches_of(config: Config, data: CocoData, process: Process) -> Callable[[int], Iterator[Batch]]:
    """This process's batches from an iteration on; one batch is one optimiser step, accumulation included."""
    share = config.data.batch_size // process.world_size
    head = config.model.keypoint_head
    pairs = () if head is None else head.flip_pairs

    def batches(iteration: int) -> Iterator[Batch]:
        seed, rank, world = config.train.seed, process.rank, process.world_size
        source: Any = data  # its cached properties are properties, whatever pyright says
        noted = process.device.type == "cuda"  # which resizes and colours the pictures itself
        loader = TrainLoader(
            source, config.data, seed, share, rank, world, iteration, pairs, noted, config.model.input
        )
        return on_device_ahead(iter(loader), process.device)

    return batches


def validation(
    config: Config,
    data: CocoData,
    process: Process,
    say: Callable[[str], object],
    beside: bool | None = None,
) -> Callable[[MaskRCNN], Later]:
    """Make the evaluation during training: losses at the test-time size, and COCO's numbers.

    beside: encode masks in threads, and leave what scores them to be called beside the next steps; by default on one
    GPU. (On a CPU the steps need all cores, and several processes exchange results in an order.)

    Each process takes a share of the images; rank 0 scores the results of all. Pictures that cannot be read any more
    are told and left out: they are no reason to end a training.
    """
    head, kinds = config.model.keypoint_head, scored_kinds(config.model)
    if head is not None and data.num_keypoints != head.num_keypoints:
        raise UserError(
            f"--val {data.json_path}: expected the training set's {head.num_keypoints} key points an object, "
            f"got {data.num_keypoints}."
        )
    if beside is None:
        beside = process.device.type == "cuda" and process.world_size == 1
    pictures, told = StillReadable(data, config.model.input), set[str]()
    # What is scored against, by the images that are lost, made when it is first needed and where it is needed
    truths: dict[tuple[int, ...], Truth] = {}

    def scored(part: CocoData, lost: tuple[int, ...], results: list[dict[str, Any]]) -> EvaluationResult:
        if lost not in truths:
            truths.clear()
            truths[lost] = load_truth(to_coco(part))
        limit = config.train.evaluate_max_detections
        return evaluate_results(truths[lost], results, kinds, max_detections=limit)

    def validate(model: MaskRCNN) -> Later:
        lost = distributed.on_main(pictures.lost)
        part = _without(data, lost)
        for why in set(lost.values()) - told:
            say(f"validation: left out from now on: {why}")
        told.update(lost.values())
        losses = validation_losses(model, config, part, process)
        share = range(process.rank, part.num_images, process.world_size)
        # Not a graph: it would be made anew for the weights of every validation.
        engine = "cpu" if model.device.type == "cpu" else "eager"
        ready = prepare(model, config.train.precision, engine)
        if beside:
            pool = ThreadPoolExecutor(2, thread_name_prefix="maskrcnn-encode")
            results = begin_inference(ready, part, pool, indices=share)
            pool.shutdown(wait=False)  # when all is encoded
        else:
            mine = run_inference(ready, part, indices=share)
            all_of_them = [entry for some in distributed.gather(mine) for entry in some]
            results = lambda: all_of_them  # noqa: E731

        def score() -> dict[str, Any]:
            result = distributed.on_main(lambda: scored(part, tuple(lost), results()))
            for warning in set(result.warnings) - told:
                say(warning)
            told.update(result.warnings)
            return {**result.numbers, "validation_losses": losses, "validation_loss": sum(losses.values())}

        return score if beside else score()

    return validate


def draw_some(model: MaskRCNN, data: CocoData, count: int = 4) -> dict[str, np.ndarray]:
    """Draw what a model finds in some pictures of a data set, evenly chosen, by their names."""
    step = max(1, data.num_images // count)
    paths = [data.image_path(i) for i in range(0, data.num_images, step)][:count]
    return {
        Path(path).stem: found.draw()
        for path, found in predict_stream(prepare(model, "fp32", "eager"), paths)
        if not isinstance(found, UserError)
    }


def _without(data: CocoData, lost: Collection[int]) -> CocoData:
    if not lost:
        return data
    part = data.subset(np.array([i not in lost for i in range(data.num_images)]))
    if not part.num_objects.any():
        raise UserError(
            f"{data.json_path}: no picture with objects of the validation part can be read any more."
        )
    return part


@torch.no_grad()
def validation_losses(model: MaskRCNN, config: Config, data: CocoData, process: Process) -> dict[str, float]:
    """The mean losses over the validation set, without augmentation, on the same images every time."""
    size = config.model.input
    plain = AugmentConfig(min_sizes=(size.min_size,), max_size=size.max_size, horizontal_flip=0.0)
    settings = dataclasses.replace(config.data, augment=plain, num_workers=0)
    source: Any = data
    rank, world = process.rank, process.world_size
    loader = TrainLoader(source, settings, config.train.seed, 1, rank, world, input=size)
    count = max(1, min(loader.num_images, VALIDATION_LOSS_IMAGES) // process.world_size)
    sums: dict[str, torch.Tensor] = {}
    for images, targets, _ in islice(loader, count):
        with autocast(process.device, config.train.precision):
            losses = model(model.preprocess(images), [t.to(process.device) for t in targets])
        sums = {name: sums.get(name, 0.0) + loss.float() for name, loss in losses.items()}
    means = distributed.all_reduce_mean(torch.stack(list(sums.values())) / count)
    return dict(zip(sums, means.tolist(), strict=True))
