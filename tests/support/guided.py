"""A curved reward of six rows, and where its gradient is asked for."""

from __future__ import annotations

import torch

from tilting.oracle.mixture import Mixture
from tilting.schedule import Schedule, scaled_linear

REFERENCE = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.2, 0.1]], [1.6])))
CENTRE = torch.tensor([0.7, -0.4], dtype=torch.float64)
CFG = 3.0
TIMES = Schedule("v_prediction", scaled_linear(zero_snr=True)).grid(10)


def value(x0, rows):
    """Curved, and different for every row's image."""
    return -(x0 - CENTRE).square().sum(1) + torch.sin(x0[:, 0] * (1 + rows))


ROWS = torch.tensor([0, 0, 1, 1, 2, 2])
