"""Faster forms of single methods, put on the modules of a model from outside.

A rewrite computes what the method of its class computes. It is bound to the instance: classes, parameters and their
names stay, a copy of the model has it too, and the plain form runs wherever the fast one may not (`allowed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from maskrcnn import processor

ALL: frozenset[processor.Kind] = frozenset({"avx512_amd", "avx512", "avx2", "other"})


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """Faster form of one method of one class.

    kinds: the processors on which a paired measurement shows that it pays (`benchmarks/rewrites.py`);
    in_training: it is differentiable, or runs where the training step wants no gradient; otherwise it may overwrite
    its inputs and runs in inference alone; under_autocast: it holds under autocast too;
    suits: the modules of the class that it is for.
    """

    module: type[nn.Module]
    method: str
    fast: Callable[..., Any]
    kinds: frozenset[processor.Kind] = ALL
    in_training: bool = False
    needs_grad: bool | None = False
    under_autocast: bool = False
    suits: Callable[[Any], bool] = lambda module: True

    def allowed(self, module: nn.Module) -> bool:
        """Return True if the fast form may run now: on a CPU, not while a graph is traced."""
        parameter = next(module.parameters(), None)
        return (
            (parameter is None or parameter.device.type == "cpu")
            and self.needs_grad in (None, torch.is_grad_enabled())
            and (self.under_autocast or not torch.is_autocast_enabled("cpu"))
            and not torch.compiler.is_compiling()
        )


def rewrite(model: nn.Module, rewrites: Iterable[Rewrite], kind: processor.Kind | None = None) -> None:
    """Bind the rewrites that pay on this kind of processor, by default the one at hand, to the modules they are for."""
    kind = processor.kind() if kind is None else kind
    chosen = [r for r in rewrites if kind in r.kinds]
    for module in model.modules():
        for one in chosen:
            if type(module) is one.module and one.suits(module):
                setattr(module, one.method, MethodType(_guarded(one), module))


def plain(model: nn.Module) -> None:
    """Take every rewrite off a model."""
    for module in model.modules():
        for name in [
            k for k, v in vars(module).items() if isinstance(v, MethodType) and v.__self__ is module
        ]:
            delattr(module, name)


def _guarded(one: Rewrite) -> Callable[..., Any]:
    original = getattr(one.module, one.method)

    def method(self: nn.Module, *args: Any, **how: Any) -> Any:
        return (one.fast if one.allowed(self) else original)(self, *args, **how)

    return method
