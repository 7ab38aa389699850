"""Servers that are started here: vLLM processes, and what keeps any process of theirs from staying
behind."""
