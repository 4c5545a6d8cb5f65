"""Shared by all tests: few threads, run-time type checks of the pure rooms, and the analytic model."""

from __future__ import annotations

import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_packages

# Before any of them is imported: pure rooms are checked against annotations (NamedTuples of tensors are beyond beartype).
beartype_packages(
    ("tilting.schedule", "tilting.weights", "tilting.rng", "tilting.models.mixture"),
    conf=BeartypeConf(is_pep484_tower=True),
)
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def mixture():
    """Three components in the plane, unequal in weight and width."""
    from tilting.models.mixture import Mixture

    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.3, -1.8]], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
    )
