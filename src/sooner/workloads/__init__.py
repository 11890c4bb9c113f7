"""What arrives: prompts, traces (one reader a file) and arrival processes."""
