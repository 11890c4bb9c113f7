"""The ranker that `sooner` uses by default where this package is installed; its card is docs/rankers.md."""

from pathlib import Path

FOLDER = Path(__file__).parent / "ranker"
"""A folder as `sooner train` writes it."""
