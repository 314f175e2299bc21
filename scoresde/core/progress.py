"""Progress bars, one way: on stderr, gone at the end, a line now and then where it is a log file."""

from __future__ import annotations

import sys
from typing import Any


class bar:
    """A tqdm bar as a context manager that gives ``advance(amount=1, note="")``; nothing when not shown."""

    def __init__(self, show: bool, total: int, what: str, unit: str = "it") -> None:
        self.bar: Any = None
        if show:
            from tqdm.auto import tqdm

            often = 0.3 if sys.stderr.isatty() else 15  # in a log file every refresh is a line
            self.bar = tqdm(total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True, mininterval=often)

    def __enter__(self) -> Any:
        return self._advance

    def _advance(self, amount: int = 1, note: str = "") -> None:
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(amount)

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
