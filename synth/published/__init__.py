"""Everybody's files in, published forms out: Magpie's two namings, ShareGPT, messages.

Knows files and rows, not the store. May import tags, duplicates, filters and below.
"""
