"""Parts of the Runner: hooks, loops, checkpoints, and training without a GPU."""
