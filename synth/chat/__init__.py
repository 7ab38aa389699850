"""How a model family talks: templates by difference, stop tokens, thinking, families.

No requests are sent from here. May import `synth.config`, `synth.measures` and `core`.
"""
