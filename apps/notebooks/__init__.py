"""Notebooks that run on a CPU with the bundled model; `execute` refreshes what they show."""
