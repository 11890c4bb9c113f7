"""The demonstration: one burst of real prompts on the real vLLM, served in three orders, on any machine's CPU."""
