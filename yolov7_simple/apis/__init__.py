"""Config, checkpoint and images -> detections."""
