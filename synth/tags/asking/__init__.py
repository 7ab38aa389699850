"""What language models are asked for tags: the tags, a recipe's own among them, and how answers in
one code are read.

May import what synth.tags may.
"""
