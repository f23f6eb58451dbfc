"""The RPN head at a few anchors is the dense head there, in values and gradients."""

from __future__ import annotations

import torch

from maskrcnn.models.rpn import RPNHead
from maskrcnn.models.sparse_rpn import predict_at

ANCHORS = 3
SIZES = ((5, 7), (3, 4), (1, 1))


def head_and_features() -> tuple[RPNHead, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    head = RPNHead(8, ANCHORS).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    features = [torch.randn(2, 8, *size, generator=generator, dtype=torch.float64) for size in SIZES]
    return head, [feature.requires_grad_() for feature in features]


def gradients(head: RPNHead, features: list[torch.Tensor], value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [*head.parameters(), *features]))


def test_every_anchor_of_every_level_and_border_equals_the_dense_head():
    head, features = head_and_features()
    total = sum(h * w for h, w in SIZES) * ANCHORS
    image = torch.arange(2).repeat_interleave(total)
    index = torch.arange(total).repeat(2)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, image[order], index[order])
    dense_logits, dense_deltas = (torch.cat(maps, 1) for maps in head(features))
    torch.testing.assert_close(logits, dense_logits.flatten()[order])
    torch.testing.assert_close(deltas, dense_deltas.flatten(0, 1)[order])


def test_gradients_of_a_few_anchors_equal_the_dense_ones():
    head, features = head_and_features()
    image, index = (
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([0, 104, 140, 107]),
    )  # the last: of the middle level
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, image, index)
    mine = gradients(head, features, logits.square().sum() + deltas.sin().sum())
    dense_logits, dense_deltas = (torch.cat(maps, 1) for maps in head(features))
    value = dense_logits[image, index].square().sum() + dense_deltas[image, index].sin().sum()
    for a, b in zip(mine, gradients(head, features, value), strict=True):
        torch.testing.assert_close(a, b)


def test_no_anchors_leave_every_parameter_a_gradient_of_zero():
    head, features = head_and_features()
    nothing = torch.zeros(0, dtype=torch.int64)
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, nothing, nothing)
    assert logits.shape == (0,)
    assert deltas.shape == (0, 4)
    assert all((g == 0).all() for g in gradients(head, features, logits.sum() + deltas.sum()))


def test_autocast_after_a_dense_pass_without_gradients_still_trains_every_parameter():
    head, features = head_and_features()
    head, features = head.float(), [f.detach().float().requires_grad_() for f in features]
    image, index = torch.tensor([1, 0, 1]), torch.tensor([0, 104, 140])
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, image, index)
    exact = gradients(head, features, logits.sum() + deltas.sum())
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            head(features)
        logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, image, index)
    for a, b in zip(gradients(head, features, logits.sum() + deltas.sum()), exact, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()
