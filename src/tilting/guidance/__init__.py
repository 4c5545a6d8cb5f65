"""Corrections of a sampler by gradients. A correction sees functions only: never a model, never a reward."""
