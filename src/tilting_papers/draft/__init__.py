"""Experiments of Clark et al. 2024 (DRaFT) on model pocket."""
