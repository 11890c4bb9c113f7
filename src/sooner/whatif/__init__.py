"""What would another order have done with the traffic that was served? A replay, and its own error."""
