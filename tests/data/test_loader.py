"""Training batches: the order is the seed's, whoever loads it, from wherever it starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from maskrcnn.config import AugmentConfig, DataConfig
from maskrcnn.data.loader import TrainLoader
from maskrcnn.data.sampler import BatchSampler, repeat_factors, view_seed
from maskrcnn.errors import UserError
from maskrcnn.masks import InstanceMasks
from maskrcnn.structures import GroundTruth


@dataclass
class Folder:
    """Data set of small pictures with one square each, with `CocoData`'s interface; every fifth has no object."""

    folder: Path
    sizes: np.ndarray

    @property
    def num_images(self) -> int:
        return len(self.sizes)

    @property
    def num_objects(self) -> np.ndarray:
        return (np.arange(self.num_images) % 5 != 4).astype(np.int64)

    def classes_of_images(self) -> np.ndarray:
        images = np.flatnonzero(self.num_objects)
        return np.stack([images, images == images[-1]], axis=1)  # the last one alone has class 1

    def image_path(self, i: int) -> Path:
        return self.folder / f"{i}.png"

    def ground_truth(self, i: int) -> GroundTruth:
        n = int(self.num_objects[i])
        polygons = [[[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]] * n
        masks = InstanceMasks.from_coco(polygons, tuple(self.sizes[i].tolist()))
        return GroundTruth(masks.tight_boxes(), torch.zeros(n, dtype=torch.int64), masks, image_id=100 + i)


@dataclass
class OneBroken(Folder):
    """Data set whose picture 7 is not there. Not local to its test: where workers are not forked, it is pickled."""

    def image_path(self, i: int) -> Path:
        return self.folder / "gone.png" if i == 7 else super().image_path(i)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Folder:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    sizes = np.array([(32, 48) if i % 3 else (48, 32) for i in range(23)])
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return Folder(folder, sizes)


AUGMENT = AugmentConfig(min_sizes=(28, 32, 40), max_size=80, crop_size=(36, 44), brightness=0.2)
CONFIG = DataConfig(num_workers=0, augment=AUGMENT)


def flat(batches) -> list[tuple]:
    """Flatten a batch: everything that could differ between two runs, in a form that compares."""
    return [
        (image_id, image.shape, image.numpy().tobytes(), t.seed, t.boxes.tolist(), t.masks.matrix.tolist())
        for images, targets, image_ids in batches
        for image, t, image_id in zip(images, targets, image_ids, strict=True)
    ]


def take(loader: TrainLoader, n: int) -> list:
    return list(islice(loader, n))


def test_same_seed_same_batches_other_seed_other_batches(data):
    first = flat(take(TrainLoader(data, CONFIG, 3, 4), 12))
    assert first == flat(take(TrainLoader(data, CONFIG, 3, 4), 12))
    assert [f[0] for f in first] != [f[0] for f in flat(take(TrainLoader(data, CONFIG, 4, 4), 12))]


def test_resumed_in_mid_epoch_goes_on_exactly(data):
    whole = take(TrainLoader(data, CONFIG, 3, 4), 12)
    for start in (1, 4, 7, 11):  # an epoch is 19 images, 4.75 batches
        loader = TrainLoader(data, CONFIG, 3, 4, start_batch=start)
        assert flat(take(loader, 12 - start)) == flat(whole[start:])
        assert loader.state == 12


def test_iterating_again_goes_on(data):
    loader = TrainLoader(data, CONFIG, 3, 4)
    assert flat(take(loader, 3)) + flat(take(loader, 4)) == flat(take(TrainLoader(data, CONFIG, 3, 4), 7))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_number_of_workers_does_not_matter(data, num_workers):
    config = DataConfig(num_workers=num_workers, augment=AUGMENT)
    here = flat(take(TrainLoader(data, CONFIG, 3, 4), 8))
    assert flat(take(TrainLoader(data, config, 3, 4), 8)) == here
    assert flat(take(TrainLoader(data, config, 3, 4, start_batch=5), 3)) == here[5 * 4 :]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_are_one_process(data, world_size):
    alone = take(TrainLoader(data, CONFIG, 3, 4), 8)
    ranks = [
        take(TrainLoader(data, CONFIG, 3, 4 // world_size, rank, world_size), 8) for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        assert flat([batch]) == flat([rank[step] for rank in ranks])


def test_batches_hold_wide_or_tall_images(data):
    for _, _, image_ids in take(TrainLoader(data, CONFIG, 3, 4), 20):
        heights, widths = data.sizes[np.array(image_ids) - 100].T
        assert len(set((widths >= heights).tolist())) == 1


def test_images_without_objects_are_left_out_on_request(data):
    seen = {i for batch in take(TrainLoader(data, CONFIG, 3, 4), 20) for i in batch[2]}
    assert seen == {100 + i for i in range(23) if i % 5 != 4}
    with_empty = DataConfig(num_workers=0, augment=AUGMENT, skip_empty=False)
    seen = {i for batch in take(TrainLoader(data, with_empty, 3, 4), 20) for i in batch[2]}
    assert seen == {100 + i for i in range(23)}


def test_low_limit_of_open_files_does_not_stop_workers(data):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    low = in_use + 40
    if not in_use or hard < low + 500:
        pytest.skip("cannot tell open files here, or may not open more")
    config = DataConfig(num_workers=1, augment=AUGMENT)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        batches = take(TrainLoader(data, config, 3, 32), 3)  # held: 3 x 32 x 3 tensors
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [len(images) for images, _, _ in batches] == [32, 32, 32]


def test_every_view_has_its_own_seed(data):
    seeds = [t.seed for batch in take(TrainLoader(data, CONFIG, 3, 4), 20) for t in batch[1]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.slow
def test_workers_that_are_not_forked_load_the_same(data, monkeypatch):
    """Where nothing is forked (Windows, macOS, Linux from Python 3.14 on) all that workers need is pickled."""
    expected = flat(take(TrainLoader(data, CONFIG, 3, 4), 2))
    monkeypatch.setattr(
        "maskrcnn.data.loader.DataLoader", partial(DataLoader, multiprocessing_context="spawn")
    )
    with_a_worker = TrainLoader(data, DataConfig(num_workers=1, augment=AUGMENT), 3, 4)
    assert flat(take(with_a_worker, 2)) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_is_named_in_one_line(data, num_workers):
    config = DataConfig(num_workers=num_workers, augment=AUGMENT)
    with pytest.raises(UserError, match=r"gone\.png: cannot read the image: No such file") as error:
        take(TrainLoader(OneBroken(data.folder, data.sizes), config, 3, 4), 20)
    assert "\n" not in str(error.value)


def test_image_of_another_size_than_annotated_is_refused(data):
    sizes = data.sizes.copy()
    sizes[2] = (50, 60)
    with pytest.raises(UserError, match=r"2\.png: expected 60 x 50 pixels as annotated, got 48 x 32"):
        take(TrainLoader(Folder(data.folder, sizes), CONFIG, 3, 4), 20)


def test_nothing_to_train_on_is_said_at_once(data):
    class AllEmpty(Folder):
        @property
        def num_objects(self) -> np.ndarray:
            return np.zeros(self.num_images, np.int64)

    with pytest.raises(UserError, match="expected images to train on, got 23 images, none of them with"):
        TrainLoader(AllEmpty(data.folder, data.sizes), CONFIG, 3, 4)
    with pytest.raises(UserError, match="got no images"):
        TrainLoader(Folder(data.folder, data.sizes[:0]), CONFIG, 3, 4)


def places_and_images(sampler: BatchSampler, n: int) -> list:
    return list(islice(sampler, n))


def test_each_epoch_shows_each_image_once():
    images = np.arange(50, 60)
    sampler = BatchSampler(images, None, batch_size=5, seed=1)
    batches = places_and_images(sampler, 6)
    for epoch in range(3):
        seen = [image for batch in batches[2 * epoch : 2 * epoch + 2] for _, image in batch]
        assert sorted(seen) == images.tolist()
    assert [place for batch in batches for place, _ in batch] == list(range(30))
    assert batches[0] + batches[1] != batches[2] + batches[3]


def test_grouping_loses_no_image():
    """Each image has been shown as often as any other, but for those that wait for their group's batch."""
    wide = np.arange(37) % 3 == 0
    batches = places_and_images(BatchSampler(np.arange(37), wide, batch_size=4, seed=1), 185)
    counts = Counter(image for batch in batches for _, image in batch)
    assert set(counts) == set(range(37))
    assert max(counts.values()) - min(counts.values()) <= 1
    places = [place for batch in batches for place, _ in batch]
    assert len(set(places)) == len(places)
    last = [batch[-1][0] for batch in batches]
    assert last == sorted(last)


def test_data_smaller_than_a_batch():
    batches = places_and_images(BatchSampler(np.arange(3), np.array([True, True, False]), 8, seed=0), 3)
    assert [place for batch in batches for place, _ in batch] == list(range(24))


def test_a_group_that_cannot_fill_a_batch_is_not_kept_apart():
    wide = np.arange(20) > 0  # a single tall image
    for batch in places_and_images(BatchSampler(np.arange(20), wide, 4, seed=0), 50):
        assert len({image for _, image in batch}) >= 3  # never the tall one four times


def test_rare_classes_are_repeated_as_the_paper_says():
    """Class 0 is in all four images, class 1 in one: sqrt(1 / (1 / 4)) is 2."""
    image, label = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [2, 1]]).T
    assert repeat_factors(image, label, 4, 1.0).tolist() == [1, 1, 2, 1]
    assert repeat_factors(image, label, 4, 0.5).tolist() == pytest.approx([1, 1, 2**0.5, 1])
    assert repeat_factors(image, label, 4, 0.25).tolist() == [1, 1, 1, 1]


def test_an_epoch_repeats_an_image_by_its_factor_on_average():
    factors = np.array([1.0, 1.0, 2.0, 1.5])
    batches = places_and_images(BatchSampler(np.arange(4), None, 11, seed=3, repeats=factors), 1000)
    counts = Counter(image for batch in batches for _, image in batch)
    for image, factor in enumerate(factors):
        assert counts[image] / 11_000 == pytest.approx(factor / factors.sum(), abs=0.005)
    assert [place for batch in batches for place, _ in batch] == list(range(11_000))
    again = BatchSampler(np.arange(4), None, 11, seed=3, start_batch=700, repeats=factors)
    assert places_and_images(again, 300) == batches[700:]


def test_the_loader_repeats_images_of_rare_classes(data):
    config = DataConfig(num_workers=0, augment=AUGMENT, aspect_grouping=False, repeat_threshold=1.0)
    loader = iter(TrainLoader(data, config, 3, 4))
    seen = Counter(image_id for _ in range(60) for image_id in next(loader)[2])
    rare = 100 + int(np.flatnonzero(data.num_objects)[-1])
    assert seen[rare] > 3 * max(count for image_id, count in seen.items() if image_id != rare)


def test_view_seeds_are_fixed_numbers():
    """Saved runs rely on these. From SplitMix64 written down independently, in wrapping uint64 arithmetic."""

    def splitmix(x: np.uint64) -> np.uint64:
        with np.errstate(over="ignore"):
            x = x + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return x ^ (x >> np.uint64(31))

    assert int(splitmix(np.uint64(0))) == 0xE220A8397B1DCDAF  # the published first output for seed 0
    for seed, place in ((0, 0), (1, 2), (123456789, 10**9)):
        with np.errstate(over="ignore"):
            expected = int(splitmix(splitmix(np.uint64(seed)) + np.uint64(place))) >> 1
        assert view_seed(seed, place) == expected
