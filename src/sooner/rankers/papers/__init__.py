"""The papers' rankers, one file each, on one head."""
