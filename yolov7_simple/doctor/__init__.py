"""A detection set, checked before it costs a training run."""
