"""Training an analysis on the number it publishes, and reporting it honestly."""
