"""The OpenAI-compatible gateway: learned order, fairness and deadlines in front of any engine.

It reads each request once, orders the waiting ones with the same policies as everything else here,
and hands the bytes of replies on without looking at each piece.
"""
