"""Judges: what they are shown, how their words are read, what they cost, how far to trust them.

Turns answers into judgments; scores are made of them in `eval.scoring`. May import prompt_sets.
"""
