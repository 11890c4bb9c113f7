"""The engines: their kinds, connections, health, bounds, and how fast each one works."""
