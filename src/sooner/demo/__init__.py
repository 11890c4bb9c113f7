"""The demonstration: bursts of real prompts on the real vLLM, in three orders, on any machine's CPU."""
