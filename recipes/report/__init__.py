"""The HTML page of a run, and the sentences that stand beside scores.

Reads finished results only. May import the schema and the floors below.
"""
