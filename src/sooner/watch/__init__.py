"""What a plugin or a gateway does now, seen from outside: from its trace, or from its `/metrics`."""
