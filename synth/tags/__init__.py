"""What is measured of one row by itself: by a model, by rules, or from the text's own figures.

What looks at several rows at once is in `synth.duplicates`. May import generate and duplicates.
"""
