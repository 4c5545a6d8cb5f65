"""Experiments of Zhao et al. 2024 (CTRL) on model pocket and on the analytic mixture."""
