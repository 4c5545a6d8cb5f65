"""Fine-tuning on rewards: one differentiable rollout, objectives as pure losses over it, and a loop that resumes.

The room is a function too: ``tilting.finetune(pipe, prompts, reward, ...)`` trains a LoRA and returns a `Tuned`; what it takes
and gives is told by ``help(tilting.experiments.finetune.tuning.finetune)``.
"""
