"""Fine-tuning: the training loop, checkpoints and run folders."""
