"""The ground floor: store, columns, models, servers, tracking, files.

Knows nothing of Magpie, training or judging, and imports no other floor. Nothing here is heavy to
import: torch, transformers and W&B load inside the functions that need them.
"""
