"""Shared by all tests: few threads, run-time type checks of the pure rooms, the analytic model, and pocket for commands."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_packages

# Before any of them is imported: pure rooms are checked against annotations (NamedTuples of tensors are beyond beartype).
beartype_packages(
    ("tilting.schedule", "tilting.weights", "tilting.rng", "tilting.oracle.mixture"), conf=BeartypeConf(is_pep484_tower=True)
)
pytest.register_assert_rewrite("support")  # asserts of helpers tell as much as those of tests
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items):
    """Files of few tests come first, which are the long ones: at the end no worker is left alone with one."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: counts[item.path])


@pytest.fixture
def mixture():
    """Three components in the plane, unequal in weight and width."""
    from tilting.oracle.mixture import Mixture

    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.3, -1.8]], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def no_bars():
    """As `tilting.cli.run` has it for the process: transformers' own bars are off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def pocket(no_bars):
    """The model, read from disk once for all tests of a file."""
    import tilting as tl

    return tl.load("pocket")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of a few thousand random weights."""
    from support.small import write_small

    return write_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def small(folder):
    """That model."""
    import tilting as tl

    return tl.load(str(folder))


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are composed and not drawn, until it is undone."""
    from support.charts import undrawn

    with monkeypatch.context() as patch:
        undrawn(patch)
        yield patch


@pytest.fixture
def undrawn_pages(monkeypatch):
    """Charts inside of pages are composed and not drawn; those that are PNG are."""
    from support.charts import undrawn

    undrawn(monkeypatch, ("svg", "pdf"))


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails."""

    def load(name, *more, **how):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tilting.generation.run.load", load)
