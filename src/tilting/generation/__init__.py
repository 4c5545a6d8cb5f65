"""Image generation: planning, sampling, scoring and run folders."""
