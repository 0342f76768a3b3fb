"""Annotation file and images -> training samples."""
