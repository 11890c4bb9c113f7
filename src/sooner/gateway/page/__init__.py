"""The live page at `/sooner/`: what waits and why, what tenants get, whether predictions hold, a switch."""
