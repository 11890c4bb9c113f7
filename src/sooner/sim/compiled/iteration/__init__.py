"""The compiled engine that orders everything anew at each iteration, as vllm-ltr does."""
