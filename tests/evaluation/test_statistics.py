"""Bootstrap intervals of paired differences."""

from __future__ import annotations

import torch

from tilting.metrics.statistics import paired_bootstrap


def test_statistics_interval_covers_a_known_mean():
    gen = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(100):
        a = (0.5 + torch.randn(60, generator=gen)).tolist()
        mean, low, high = paired_bootstrap(a, [0.0] * 60, draws=500)
        assert low < mean < high
        hits += low < 0.5 < high
    assert 85 <= hits <= 100  # nominal 95


def test_paired_bootstrap_resamples_whole_groups():
    a, b = [1.0] * 10 + [0.0] * 10, [0.0] * 20
    apart = paired_bootstrap(a, b)
    grouped = paired_bootstrap(a, b, groups=["p"] * 10 + ["q"] * 10)
    assert apart.mean == grouped.mean == 0.5
    assert (grouped.low, grouped.high) == (0.0, 1.0)
    assert 0.2 < apart.low < apart.high < 0.8
