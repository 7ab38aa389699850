"""The orders of `choose` that are more than a sort: greedy choices, choices by queries or a list,
and what they are given."""
