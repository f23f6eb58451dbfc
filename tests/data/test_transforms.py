"""Image, boxes and masks stay together whatever is done to the image, and only the seed decides what is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from maskrcnn import presets
from maskrcnn.config import AugmentConfig
from maskrcnn.data.transforms import augment, crop, flip_horizontal, flip_vertical, resize, rotate90
from maskrcnn.images.resize import resize_image
from maskrcnn.masks import InstanceMasks
from maskrcnn.structures import GroundTruth

HEIGHT, WIDTH = 120, 160
POLYGONS = [
    [20.0, 12.0, 70.0, 20.0, 58.0, 66.0, 26.0, 50.0],
    [100.0, 60.0, 150.0, 64.0, 140.0, 112.0, 96.0, 100.0, 112.0, 84.0],
]
COLOURS = [(255, 0, 0), (0, 255, 0)]  # object k fills channel k


def sample(form: str = "polygons") -> tuple[torch.Tensor, GroundTruth]:
    """Two objects painted into the picture, with their masks as polygons or as bitmaps."""
    picture = Image.new("RGB", (WIDTH * 8, HEIGHT * 8))
    for polygon, colour in zip(POLYGONS, COLOURS, strict=True):
        ImageDraw.Draw(picture).polygon([8 * v for v in polygon], fill=colour)
    image = np.array(picture.reduce(8))
    masks = InstanceMasks.from_coco([[p] for p in POLYGONS], (HEIGHT, WIDTH))
    if form == "bitmaps":
        masks = InstanceMasks.from_bitmaps((image[..., :2] > 127).transpose(2, 0, 1))
    truth = GroundTruth(masks.tight_boxes(), torch.tensor([3, 5]), masks, image_id=7, seed=11)
    return torch.from_numpy(image).permute(2, 0, 1), truth


def agreement(image: torch.Tensor, truth: GroundTruth, channels: tuple[int, ...] = (0, 1)) -> list[float]:
    """IoU of each mask with the pixels that its object was painted on."""
    assert truth.masks is not None
    masks = truth.masks.to_bitmaps(tuple(image.shape[1:])).astype(bool)  # pyright: ignore[reportArgumentType]
    painted = image.numpy() > 127
    return [(m & painted[c]).sum() / (m | painted[c]).sum() for m, c in zip(masks, channels, strict=True)]


def boxes_from_pixels(image: torch.Tensor) -> np.ndarray:
    boxes = []
    for channel in image.numpy()[:2] > 127:
        rows, columns = np.flatnonzero(channel.any(1)), np.flatnonzero(channel.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(boxes)


TRANSFORMS = {
    "resize": lambda image, truth: resize(image, truth, (90, 200)),
    "flip_horizontal": flip_horizontal,
    "flip_vertical": flip_vertical,
    "rotate90": rotate90,
    "rotate270": lambda image, truth: rotate90(image, truth, 3),
    "crop": lambda image, truth: crop(image, truth, (30, 40), (60, 100)),
    "all": lambda image, truth: crop(
        *resize(*rotate90(*flip_horizontal(image, truth)), (240, 180)), (20, 10), (180, 160)
    ),
}


@pytest.mark.parametrize("form", ["polygons", "bitmaps"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_and_boxes_follow_the_image(name, form):
    image, truth = TRANSFORMS[name](*sample(form))
    assert min(agreement(image, truth)) > 0.93
    np.testing.assert_allclose(truth.boxes.numpy(), boxes_from_pixels(image), atol=1.6)
    assert truth.labels.tolist() == [3, 5]
    assert (truth.image_id, truth.seed) == (7, 11)


def same(a: tuple[torch.Tensor, GroundTruth], b: tuple[torch.Tensor, GroundTruth]) -> None:
    (image_a, truth_a), (image_b, truth_b) = a, b
    assert torch.equal(image_a, image_b)
    torch.testing.assert_close(truth_a.boxes, truth_b.boxes, rtol=0, atol=1e-4)
    assert torch.equal(truth_a.labels, truth_b.labels)
    assert truth_a.masks is not None
    assert truth_b.masks is not None
    size = tuple(image_a.shape[1:])
    assert np.array_equal(truth_a.masks.to_bitmaps(size), truth_b.masks.to_bitmaps(size))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flip_twice_is_identity(flip):
    same(flip(*flip(*sample())), sample())


def test_four_quarter_turns_are_identity():
    turned = sample()
    for _ in range(4):
        turned = rotate90(*turned)
    same(turned, sample())
    same(rotate90(*rotate90(*sample()), 3), sample())


def test_two_quarter_turns_are_both_flips():
    same(rotate90(*sample(), 2), flip_vertical(*flip_horizontal(*sample())))


def test_crop_keeps_only_what_is_inside():
    image, truth = crop(*sample(), (0, 0), (80, 60))  # the second object lies right of it
    assert image.shape == (3, 80, 60)
    assert truth.labels.tolist() == [3]
    assert agreement(image, truth, channels=(0,))[0] > 0.93


def test_crop_box_is_tight_around_the_mask_inside():
    # A triangle with its right angle at the origin: right of x = 60, it is 40 high at most.
    masks = InstanceMasks.from_coco([[[0.0, 0.0, 100.0, 0.0, 0.0, 100.0]]], (100, 100))
    truth = GroundTruth(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([0]), masks)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    assert crop(image, truth, (0, 60), (100, 40))[1].boxes.tolist() == [[0, 0, 40, 40]]
    without_masks = GroundTruth(truth.boxes, truth.labels)
    assert crop(image, without_masks, (0, 60), (100, 40))[1].boxes.tolist() == [[0, 0, 40, 100]]


def test_crop_where_only_the_box_reaches_in_drops_the_object():
    masks = InstanceMasks.from_coco([[[0.0, 0.0, 100.0, 0.0, 0.0, 100.0]]], (100, 100))
    truth = GroundTruth(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([0]), masks)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    _, cropped = crop(image, truth, (60, 60), (40, 40))
    assert len(cropped) == 0
    assert cropped.boxes.shape == (0, 4)
    assert cropped.masks is not None
    assert len(cropped.masks) == 0


def test_boxes_that_are_not_cut_stay_as_annotated():
    image, truth = sample()
    truth.boxes[0] += torch.tensor([-3.0, -3.0, 3.0, 3.0])  # loose on purpose
    _, cropped = crop(image, truth, (5, 10), (110, 145))
    assert cropped.boxes[0].tolist() == (truth.boxes[0] - torch.tensor([10, 5, 10, 5])).tolist()


EVERYTHING = AugmentConfig(
    min_sizes=(90, 110, 140),
    max_size=220,
    jitter_scale=(0.7, 1.6),
    crop_size=(110, 130),
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate90=0.5,
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
    hue=0.02,
)


@pytest.mark.parametrize("seed", range(20))
def test_augmented_masks_follow_the_image(seed):
    image, truth = augment(*sample(), EVERYTHING, seed)
    assert image.dtype == torch.uint8
    assert max(image.shape[1:]) <= 130
    channels = tuple({3: 0, 5: 1}[k] for k in truth.labels.tolist())
    # Pixels at the border of a small part are a large share of it, so only parts of some size are compared.
    area = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(dim=1)
    for value, a in zip(agreement(image, truth, channels), area.tolist(), strict=True):
        assert value > 0.85 or a < 300
    limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
    assert (truth.boxes >= 0).all()
    assert (truth.boxes <= limit).all()


def test_same_seed_same_view_other_seed_other_view():
    same(augment(*sample(), EVERYTHING, 5), augment(*sample(), EVERYTHING, 5))
    first, second = augment(*sample(), EVERYTHING, 5)[0], augment(*sample(), EVERYTHING, 6)[0]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    augment(*sample(), EVERYTHING, 5)
    assert (torch.rand(1), np.random.rand()) == before


def test_shortest_side_is_one_of_the_sizes():
    config = AugmentConfig(min_sizes=(60, 90), max_size=1000, horizontal_flip=0)
    sizes = {augment(*sample(), config, seed)[0].shape[1:] for seed in range(20)}
    assert sizes == {(60, 80), (90, 120)}


def test_large_scale_jitter_is_relative_to_fitting_the_crop():
    # 120 x 160 just fits 240 x 240 at 180 x 240; half to twice that is 90..240 (after the crop) high.
    config = AugmentConfig(jitter_scale=(0.5, 2.0), crop_size=(240, 240), horizontal_flip=0)
    shapes = [augment(*sample(), config, seed)[0].shape[1:] for seed in range(60)]
    heights, widths = [s[0] for s in shapes], [s[1] for s in shapes]
    assert 90 <= min(heights) < 110
    assert 120 <= min(widths) < 150
    assert max(heights) == 240
    assert max(widths) == 240


def test_jitter_without_a_crop_is_relative_to_the_shortest_edge_size():
    config = AugmentConfig(min_sizes=(60,), jitter_scale=(0.5, 1.0), horizontal_flip=0)
    heights = [augment(*sample(), config, seed)[0].shape[1] for seed in range(40)]
    assert 30 <= min(heights) < 36
    assert 54 < max(heights) <= 60


def test_probabilities_of_zero_and_one():
    still = AugmentConfig(min_sizes=(HEIGHT,), horizontal_flip=0)
    same(augment(*sample(), still, 0), sample())
    flipped = AugmentConfig(min_sizes=(HEIGHT,), horizontal_flip=1)
    same(augment(*sample(), flipped, 0), flip_horizontal(*sample()))


def test_objects_under_a_pixel_are_dropped():
    image, truth = sample()
    truth.boxes[1] = torch.tensor([10.0, 10.0, 11.5, 30.0])
    keep = AugmentConfig(min_sizes=(HEIGHT,), horizontal_flip=0)
    assert augment(image, truth, keep, 0)[1].labels.tolist() == [3, 5]
    half = AugmentConfig(min_sizes=(HEIGHT // 2,), horizontal_flip=0)
    assert augment(image, truth, half, 0)[1].labels.tolist() == [3]


def test_images_without_objects_and_without_masks():
    image, _ = sample()
    none = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    empty_masks = GroundTruth(none.boxes, none.labels, InstanceMasks.from_coco([], (HEIGHT, WIDTH)))
    for truth in (none, empty_masks):
        for seed in range(8):
            assert augment(image, truth, EVERYTHING, seed)[1].boxes.shape == (0, 4)


def test_colour_leaves_geometry_alone_and_changes_pixels():
    colour = AugmentConfig(min_sizes=(HEIGHT,), horizontal_flip=0, brightness=0.4, hue=0.4, saturation=0.4)
    image, truth = augment(*sample(), colour, 1)
    assert not torch.equal(image, sample()[0])
    assert torch.equal(truth.boxes, sample()[1].boxes)


def test_grayscale_makes_the_channels_equal():
    image, _ = augment(*sample(), AugmentConfig(min_sizes=(HEIGHT,), grayscale=1), 0)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_result_is_not_a_view_of_the_larger_image():
    image, _ = augment(*sample(), AugmentConfig(min_sizes=(HEIGHT,), crop_size=(32, 32)), 0)
    assert image.untyped_storage().nbytes() == 3 * 32 * 32
    assert image.permute(1, 2, 0).is_contiguous()


def test_a_window_is_a_share_of_the_picture_and_comes_first():
    image, truth = sample()
    config = AugmentConfig(min_sizes=(240,), max_size=1000, window_share=(0.5, 0.75), horizontal_flip=0)
    ratios = set()
    for seed in range(40):
        view, objects = augment(image, truth, config, seed)
        assert min(view.shape[1:]) == 240
        ratios.add(view.shape[2] / view.shape[1])
        channels = tuple({3: 0, 5: 1}[k] for k in objects.labels.tolist())
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).amin(1)  # of a strip at the border half is blur
        good = zip(agreement(view, objects, channels), sides.tolist(), strict=True)
        assert all(iou > 0.8 for iou, side in good if side > 16)
    # Height 60 to 90 and width 80 to 120, each drawn by itself.
    assert 80 / 90 - 0.02 <= min(ratios) < 1.1
    assert 1.6 < max(ratios) <= 120 / 60 + 0.02


def test_zoom_enlarges_a_window_half_of_the_time():
    image, truth = sample()
    config = AugmentConfig(min_sizes=(96,), max_size=200, zoom_sizes=(60, 80), zoom_crop=(40, 50))
    views = [augment(image, truth, config, seed)[0].shape[1:] for seed in range(60)]
    whole = sum(view == (96, 128) for view in views)
    assert 15 <= whole <= 45
    # A window has sides of 40 to 50 whatever the picture's are, so it is nearly a square; its shortest side is 96.
    windows = {tuple(view) for view in views} - {(96, 128)}
    assert len(windows) > 5
    assert all(min(view) == 96 and max(view) <= 120 for view in windows)
    seeds = [seed for seed, view in enumerate(views) if view != (96, 128)]
    for seed in seeds[:10]:
        zoomed, objects = augment(image, truth, config, seed)
        channels = tuple({3: 0, 5: 1}[k] for k in objects.labels.tolist())
        assert all(iou > 0.8 for iou in agreement(zoomed, objects, channels))


def test_plain_bilinear_is_opencv_s_within_a_level():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    truth = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    resized, _ = resize(image.permute(2, 0, 1), truth, (33, 47), antialias=False)
    expected = resize_image(image.numpy(), (33, 47), "opencv")
    assert np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "name", ["mask_rcnn_internimage_t_fpn_3x_coco", "mask_rcnn_deit_adapter_tiny_fpn_3x_coco"]
)
def test_multi_scale_recipe(name):
    """Shortest side 480 to 800 and longest at most 1333; ViT-Adapter's also in a window of 1024."""
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    truth = GroundTruth(torch.tensor([[100.0, 100, 500, 400]]), torch.tensor([1]))
    config = presets.get(name).data.augment
    sizes = torch.tensor([augment(image, truth, config, seed)[0].shape[1:] for seed in range(40)])
    assert (sizes.amin(1) >= 480).all()
    assert (sizes.amin(1) <= 800).all()
    assert sizes.max() <= (1024 if "adapter" in name else 1333)
    assert len(sizes.amin(1).unique()) > 6
