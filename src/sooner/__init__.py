"""LLM serving that answers sooner: requests ordered by learned expected length, with a bound on waiting."""

__version__ = "0.1.0"
