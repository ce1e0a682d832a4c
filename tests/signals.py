"""A process that hears Ctrl-C, wherever the tests run."""

import signal


def heard() -> None:
    """For `preexec_fn`: shells let what they start in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
