"""Evaluation and comparison of runs."""
