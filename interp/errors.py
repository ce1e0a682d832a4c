"""The exception tree. Every message says what was wrong, what was expected, and what to do.

The command line catches `MnemoscopeError` alone and prints one line; anything else is a bug and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class MnemoscopeError(Exception):
    """Base of every error that a user can mend."""


class ModelError(MnemoscopeError):
    """A model cannot be loaded, or cannot do what was asked of it."""


class SiteError(MnemoscopeError, ValueError):
    """A head, layer or position that does not exist, or an edit that a site cannot take."""


class PromptError(MnemoscopeError, ValueError):
    """A prompt, needle or haystack that cannot be used as asked."""


class ResultError(MnemoscopeError, ValueError):
    """A result that cannot be read, written or compared."""


class ClusterError(MnemoscopeError):
    """Workers that cannot be reached, started or kept alive."""


class InterruptedRunError(MnemoscopeError):
    """Stopped by the user."""


class UnknownNameError(MnemoscopeError, LookupError):
    """A name that is not in a list of names; the message suggests the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str], *, remedy: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {what} {name!r}; {hint}{' ' + remedy if remedy else ''}")
