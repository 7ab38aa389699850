"""Every row with every column measured so far: drawing, measuring, and what both cost.

The one room that sees columns, filters and servers together. May import every other room of
`synth`; nothing in `synth` imports it.
"""
