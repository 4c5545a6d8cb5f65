"""Measures of finished images. Never imports rewards: what is trained on and what judges share only `features`."""
