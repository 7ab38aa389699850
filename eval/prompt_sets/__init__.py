"""What checkpoints are asked: prompt sets, rated tasks, published baselines' answers.

May import `eval.config` and `core`.
"""
