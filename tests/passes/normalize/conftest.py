"""The fixture of the passes that fold."""

from folding import folds

__all__ = ["folds"]
