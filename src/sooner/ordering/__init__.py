"""What every live host of a policy shares: the ranked queue, the tickets, and the scorer's process."""
