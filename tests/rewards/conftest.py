"""What the tests of rewards share."""

import pytest

from support.learned import exact_rotary


@pytest.fixture
def exact(monkeypatch):
    """Qwen2-VL in the precision of its weights, for finite differences."""
    monkeypatch.setattr("transformers.models.qwen2_vl.modeling_qwen2_vl.apply_rotary_pos_emb_vision", exact_rotary)
