"""Experiments of the CoDeX thesis on model pocket."""
