"""The compiled engine that orders admissions and KV victims, as vLLM V1 does."""
