"""Muon for the hidden matrices, AdamW for everything else, both on one schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of `(count, rows, columns)` matrices towards 1 by Newton-Schulz steps."""
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix (Jordan et al. 2024), in float32, equal shapes together."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    shapes[param.shape].append(param)
            for (rows, columns), params in shapes.items():
                updates = []
                for param in params:
                    momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    gradient = param.grad
                    assert gradient is not None
                    momentum.lerp_(gradient, 0.05)
                    updates.append(gradient.lerp(momentum, 0.95))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for param, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


class Schedule:
    """Steps both optimizers: warm-up, then cosine decay to a twentieth; skips what is not finite."""

    def __init__(
        self, modules: Iterable[nn.Module], matrices: set[nn.Parameter], steps: int, muon: float, adam: float
    ) -> None:
        self.params = [p for module in modules for p in module.parameters() if p.requires_grad]
        rest = [p for p in self.params if p not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.0)
        ]
        hidden = [p for p in self.params if p in matrices]
        if hidden:
            self.optimizers.append(Muon(hidden, lr=muon, weight_decay=0.1))
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.steps, self.done = steps, 0

    def step(self, loss: Tensor) -> bool:
        """Update the weights from a loss; False if the gradient was not finite and the step was skipped."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, 1.0)
        warm_up = min(1.0, (self.done + 1) / (0.04 * self.steps + 1))
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        self.done += 1
        if not torch.isfinite(norm):
            return False
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * warm_up * decay
            optimizer.step()
        return True


def hidden_matrices(*modules: nn.Module) -> set[nn.Parameter]:
    """The two-dimensional weights inside blocks of layers, for Muon."""
    return {p for module in modules for p in module.parameters() if p.ndim == 2 and min(p.shape) > 1}
