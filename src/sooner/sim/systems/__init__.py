"""Every system of the field as a runnable baseline, one module each.

ssjf.py              SSJF (arXiv 2404.08509): its queue, three batching modes, starvation guard
ssjf_predictors.py   SSJF's six predictors, by calibrated confusion
scls.py              SCLS (arXiv 2406.13511): the ladder from SLS to slices, DP batches and max-min offload
magnus.py            Magnus (arXiv 2406.04785): WMA batches, KNN estimates, HRRN, and its baselines
magnus_learning.py   Magnus's length predictor and serving-time estimator
vllm_ltr.py          vllm-ltr (arXiv 2408.15792): every arm on the continuous engine

Constants that no source confirms carry the word "unconfirmed" in their `Constant`.
"""
