"""Keeping a store: what lies in it, what refers to what, and what nothing refers to."""
