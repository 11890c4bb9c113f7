"""A log in, a ranker out: rows read and merged, a ranker fitted, and kept where it was asked for."""

from __future__ import annotations

from sooner.training.fitting import fit, load, save
from sooner.training.keep import keep, try_folder
from sooner.training.rows import Dataset, dataset, merged, split

__all__ = ["Dataset", "dataset", "fit", "keep", "load", "merged", "save", "split", "try_folder"]
