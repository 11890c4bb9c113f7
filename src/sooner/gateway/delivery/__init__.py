"""A request on its way to an engine and its reply on the way back, whole or in slices."""
