"""CTRL: new controls learnt from a small labelled data set (Zhao et al. 2024)."""
