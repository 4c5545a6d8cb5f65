"""Muon for the hidden weights, AdamW for the rest, behind one optimiser.

A matrix W (a convolution is flattened to out x in·k·k) moves along its momentum with all singular values set to about
one: W ← W - lr · 0.2 · sqrt(max(out, in)) · orth(m), orth by five Newton-Schulz steps (Jordan et al., 2024; the factor of Liu
et al., 2025, gives the update AdamW's size, so that one learning rate serves both). Rare concepts are learnt as fast as
common ones, which is what a model that must know 1,332 drawings needs.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def orth(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Matrices (k, m, n), m <= n, with their singular values pushed towards one; in bfloat16 and fused, as it is half of a
    small step."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        s = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.float()


class Muon(torch.optim.Optimizer):
    """Muon on matrices and convolutions whose sides are both at least 16 (embeddings excepted), AdamW elsewhere."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        matrices, rest = [], []
        for p in model.parameters():
            wide = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16 and id(p) not in tables
            (matrices if wide else rest).append(p)
        self.adam = torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups + self.adam.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor, bool]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(m, group["momentum"]).flatten(1)
                tall = g.shape[0] > g.shape[1]
                shapes.setdefault((min(g.shape), max(g.shape)), []).append((p, g.T if tall else g, tall))
            for (_, wide), rows in shapes.items():
                moves = orth(torch.stack([g for _, g, _ in rows]))
                for (p, _, tall), move in zip(rows, moves, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_((move.T if tall else move).reshape(p.shape), alpha=-group["lr"] * 0.2 * wide**0.5)
        self.adam.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)

    def state_dict(self):
        return {"muon": super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict["muon"])
        self.adam.load_state_dict(state_dict["adam"])
