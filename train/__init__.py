"""A selection to a checkpoint: TRL's SFTTrainer under DeepSpeed, launched by Accelerate.

May import `core`, never `synth`, `eval` or `recipes`: a selection reaches it as a file.
"""
