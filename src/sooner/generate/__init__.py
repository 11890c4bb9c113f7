"""Offline generation: prompts that all wait at once, run to a goal, and what that did to the lengths.

goals.py     what ends a job: all, a random sample, the first that come, a budget
prompts.py   the file of prompts, found line by line in flat memory; what each line asks
expecting.py how long each prompt's replies will be, learned within the job
course.py    which sample is next, and when the goal is met: logic without I/O
store.py     finished samples on disk, each at once; a broken-off job goes on from there
engines.py   what makes replies, as a job sees it; http.py for servers, `sooner.vllm.offline` in process
drive.py     keeps the engines' windows full and takes in what comes
job.py       one job from its file of prompts to its report
"""
