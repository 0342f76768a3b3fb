"""Pixels -> predictions -> losses or detections."""
