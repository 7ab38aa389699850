"""What is taken from a checkpoint itself: answers, held-out loss, lm-eval's tasks.

Nothing is judged here. May import prompt_sets and below.
"""
