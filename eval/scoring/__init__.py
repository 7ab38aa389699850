"""From judgments to figures with errors, by each benchmark's own rules.

May import judging, checkpoint, prompt_sets and below; asks no model anything.
"""
