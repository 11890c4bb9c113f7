"""The hinter: a gateway without a queue, whose orders other people's queues execute."""
