"""Who comes in and when it is whose turn: keys, limits, fair shares, the waiting room, refusals."""
