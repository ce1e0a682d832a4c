"""Stimulus and read-out: needles, haystacks, prompts with a known answer. Knows no claim."""

from probes.haystack import load_text
from probes.needle import Needle, load_needles

__all__ = ["Needle", "load_needles", "load_text"]
