"""A run -> one HTML page."""
