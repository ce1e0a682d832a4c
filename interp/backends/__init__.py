"""Backends: the only files that import model libraries."""
