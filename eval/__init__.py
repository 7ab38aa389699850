"""A checkpoint to scores with uncertainty: what a recipe says of it, statistics, the comparison.

May import `core`, never `synth`, `train` or `recipes`: checkpoints and rows reach it as files.
"""
