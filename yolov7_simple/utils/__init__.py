"""Options and checkpoints, checked before they are used."""
