"""Fine-tuning on rewards: one differentiable rollout, objectives as pure losses over it, and a loop that resumes."""
