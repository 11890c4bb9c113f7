"""A simulator of LLM serving: the policies of this package on an engine whose costs were measured."""
