"""Judges beside people: how far they agree, on known sets and on a recipe's own answers, and what
people's labels say of a difference."""
