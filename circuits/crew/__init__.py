"""One experiment by several workers: who makes which part, and an engine that runs them."""
