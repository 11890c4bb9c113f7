"""An engine that is not there: the simulator's cost model in real time behind OpenAI's API; a test double."""
