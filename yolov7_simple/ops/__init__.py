"""Operators in plain torch, for an mmcv that was built without any."""
