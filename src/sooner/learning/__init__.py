"""What is learned from live traffic: who sends how long replies, if that still holds, when to stop."""

from sooner.learning.drift import Drift
from sooner.learning.identity import Identity, Salt
from sooner.learning.learner import Learner
from sooner.learning.switch import Switch
from sooner.learning.watch import Watch

__all__ = ["Drift", "Identity", "Learner", "Salt", "Switch", "Watch"]
