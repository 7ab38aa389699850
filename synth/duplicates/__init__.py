"""Rows that are like others: exact neighbours, MinHash, n-grams, overlap with evaluations.

May import filters, context, config and measures, and `core`.
"""
