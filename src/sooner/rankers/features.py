"""Text and context as hashed features: words, pairs of words, character n-grams, cues and numbers.

NumPy and zlib only, so that a prompt becomes indices in about a tenth of a millisecond.
"""
