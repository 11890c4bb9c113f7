"""Is a ranker any good: measures on rows it never saw, a verdict, a comparison, and its reasons."""
