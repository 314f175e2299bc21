"""The face of a folder, its ``__init__``, is the list of what it offers: command line, checkpoints and recipes look names up here."""

from __future__ import annotations

from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def own(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The classes that a package offers in its ``__all__`` and that are kinds of ``base``, by name; ``base`` itself is none."""
    offered = {name: getattr(package, name) for name in package.__all__}
    return {name: cls for name, cls in offered.items() if isinstance(cls, type) and issubclass(cls, base) and cls is not base}
