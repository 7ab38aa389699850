"""A training that is stopped, fails or goes astray, and how it goes on: checkpoints, divergence,
stopping."""
