"""Every system of the field as a runnable baseline, one module each.

ssjf.py              SSJF (arXiv 2404.08509): its queue, three batching modes, starvation guard
ssjf_predictors.py   SSJF's six predictors, by calibrated confusion
scls.py              SCLS (arXiv 2406.13511): the ladder from SLS to slices; scls_batching.py its DP
magnus.py            Magnus (arXiv 2406.04785): HRRN over batches; magnus_batching.py its WMA batcher
magnus_learning.py   Magnus's length predictor and serving-time estimator; magnus_apps.py a service for it
vllm_ltr.py          vllm-ltr (arXiv 2408.15792): every arm on the continuous engine
sorted_f.py          Sorted-F (arXiv 2508.06133): a backlog in batches that fit into KV memory
lengths.py           lengths to run them on, and noise of a chosen Kendall tau

Each module's `UNCONFIRMED` names the constants that no source confirms, and where each comes from.
"""
