"""RoIAlign of cropped bitmaps, as two small matrix products of each RoI with its mask's bitmap.

Bilinear sampling on a grid that is a product of rows and columns is separable: the mean over a bin's
samples is a row of weights times the bitmap times a column of weights. Weights follow torchvision's
RoIAlign (aligned, adaptive sampling count) on the whole picture, its border rule included; the bitmap's
crop is enough because all else is zero.
"""

from __future__ import annotations

import numpy as np

from maskrcnn.masks.store import MaskStore

WEIGHTS_AT_A_TIME = 1 << 21


def rasterize_bitmaps(store: MaskStore, masks: np.ndarray, rois: np.ndarray, size: int) -> np.ndarray:
    """Rasterise bitmaps in RoIs: masks (R,) into the store, rois (R, 4) float32 in stored pixels -> (R, size, size)
    uint8, y before x.

    A RoI whose x1 < x0 is read right to left: that is a mirrored picture, not an empty RoI.
    """
    out = np.zeros((len(masks), size, size), np.uint8)
    order = np.argsort(masks, kind="stable")  # a mask's RoIs together
    cost = np.cumsum(size * store.crops[masks[order], 2:].sum(1)) // WEIGHTS_AT_A_TIME
    for part in np.split(order, np.flatnonzero(np.diff(cost)) + 1):
        out[part] = _rasterize(store, masks[part], rois[part], size)
    return out


def _rasterize(store: MaskStore, masks: np.ndarray, rois: np.ndarray, size: int) -> np.ndarray:
    height, width = store.size
    crops = store.crops[masks]
    wx, x_starts, nx = _axis_weights(rois[:, 0], rois[:, 2], crops[:, 0], crops[:, 2], width, size)
    wy, y_starts, ny = _axis_weights(rois[:, 1], rois[:, 3], crops[:, 1], crops[:, 3], height, size)
    half = 0.5 * (nx * ny).clip(1)
    out = np.empty((len(masks), size, size), bool)
    firsts = np.flatnonzero(np.concatenate([[True], masks[1:] != masks[:-1]])).tolist()
    for a, b in zip(firsts, [*firsts[1:], len(masks)]):
        w, h = crops[a, 2:]
        bitmap = store.bitmap(masks[a]).astype(np.float32)  # (w, h)
        columns = wx[x_starts[a] : x_starts[b]].reshape(-1, w) @ bitmap  # (k size, h)
        rows = wy[y_starts[a] : y_starts[b]].reshape(b - a, size, h)
        sums = rows @ columns.reshape(b - a, size, h).transpose(0, 2, 1)
        out[a:b] = sums >= half[a:b, None, None]
    return out


def _axis_weights(
    begin: np.ndarray, end: np.ndarray, offset: np.ndarray, extent: np.ndarray, limit: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of R RoIs along one axis: flat, per RoI (size, extent); their (R + 1,) starts; (R,) samples a bin.

    Weights are sums over a bin's samples, not means: halves and quarters stay exact, so that a mean of
    exactly 0.5 is found to be so.
    """
    bins = (end - begin) / np.float32(size)  # float32, step by step as RoIAlign has it
    num_samples = np.ceil(np.abs(bins)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(size * extent)])
    roi = np.repeat(np.arange(len(begin)), size * num_samples)
    within = np.arange(len(roi)) - np.repeat(
        np.cumsum(size * num_samples) - size * num_samples, size * num_samples
    )
    cell, sample = np.divmod(within, num_samples[roi])
    step = bins[roi]
    place = (begin - np.float32(0.5))[roi] + cell.astype(np.float32) * step
    place = place + (sample.astype(np.float32) + np.float32(0.5)) * step / num_samples[roi].astype(np.float32)
    inside = (place >= -1) & (place <= limit)
    place = place.clip(0, limit - 1)
    low = np.floor(place)
    high_weight = place - low
    at = low.astype(np.int64) - offset[roi]
    base = starts[roi] + cell * extent[roi]
    flat = np.zeros(int(starts[-1]))
    for index, weight in ((at, 1 - high_weight), (at + 1, high_weight)):
        use = inside & (index >= 0) & (index < extent[roi]) & (weight > 0)
        flat += np.bincount(base[use] + index[use], weight[use], minlength=len(flat))
    return flat.astype(np.float32), starts, num_samples
