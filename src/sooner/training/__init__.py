"""A log in, a ranker out."""
