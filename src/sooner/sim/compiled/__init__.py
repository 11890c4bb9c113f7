"""The compiled engines and what both share; numba is imported here only."""
