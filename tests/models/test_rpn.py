"""The RPN head at a few anchors is the dense head there, in values and gradients."""

from __future__ import annotations

import torch

from maskrcnn.models.places import take
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
    generator = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randperm(total, generator=generator) for _ in range(2)])
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, index)
    dense_logits, dense_deltas = (torch.cat(maps, 1) for maps in head(features))
    torch.testing.assert_close(logits, take(dense_logits, index))
    torch.testing.assert_close(deltas, take(dense_deltas, index))


def test_gradients_of_a_few_anchors_equal_the_dense_ones():
    head, features = head_and_features()
    index = torch.tensor([[104, 3, 3], [0, 140, 107]])  # 107: of the middle level
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, index)
    mine = gradients(head, features, logits.square().sum() + deltas.sin().sum())
    dense_logits, dense_deltas = (torch.cat(maps, 1) for maps in head(features))
    value = take(dense_logits, index).square().sum() + take(dense_deltas, index).sin().sum()
    for a, b in zip(mine, gradients(head, features, value), strict=True):
        torch.testing.assert_close(a, b)


def test_no_anchors_leave_every_parameter_a_gradient_of_zero():
    head, features = head_and_features()
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, nothing)
    assert logits.shape == (2, 0)
    assert deltas.shape == (2, 0, 4)
    assert all((g == 0).all() for g in gradients(head, features, logits.sum() + deltas.sum()))


def test_autocast_after_a_dense_pass_without_gradients_still_trains_every_parameter():
    head, features = head_and_features()
    head, features = head.float(), [f.detach().float().requires_grad_() for f in features]
    index = torch.tensor([[104, 7], [0, 140]])
    logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, index)
    exact = gradients(head, features, logits.sum() + deltas.sum())
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            head(features)
        logits, deltas = predict_at(head.conv, head.objectness, head.deltas, features, index)
    for a, b in zip(gradients(head, features, logits.sum() + deltas.sum()), exact, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()
