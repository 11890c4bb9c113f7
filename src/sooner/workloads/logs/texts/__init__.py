"""Logs that engines print as text: one file an engine, each with `is_one` and `records`."""
