"""A text encoder and its head: how it is trained, exported and run; torch is imported nowhere else."""
