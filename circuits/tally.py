"""How far a run is: parts done of all, told to whoever watches."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is, and what is running (empty: something ended)."""


class Tally:
    """Counts what is done and reports it; `about` is said with every count."""

    about = ""

    def __init__(self, progress: Progress | None, total: int, *, done: int = 0) -> None:
        self.progress, self.total, self.done = progress, total, done

    def tick(self, _: Any = None, *, n: int = 1) -> None:
        """One more, or several, are done."""
        self.done += n
        self.tell(self.about)

    def tell(self, what: str) -> None:
        """What is running now."""
        if self.progress is not None:
            self.progress(self.done, self.total, what)
