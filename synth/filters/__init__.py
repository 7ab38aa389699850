"""Arms as rules: `where` decides row by row, an order fills the budget, the schedule measures.

Reads columns that exist and says which are wanted; computes none. May import chat, config and
measures.
"""
