"""What the Runner is given: hooks, loops, checkpoints, and what it does without a GPU."""
