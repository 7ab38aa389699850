"""Texts drawn from a teacher: instructions, responses, further turns, sampling grids.

What is measured of them is in `synth.tags`. May import filters, context and chat.
"""
