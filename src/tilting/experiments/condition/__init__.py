"""`tilting condition fit`, `train` and `sample`: their configuration, folders and functions."""
