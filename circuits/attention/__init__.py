"""Attention of a scan's trials, kept sparse for looking at, and read again on demand."""
