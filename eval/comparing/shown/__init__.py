"""A comparison in words and rows, for a terminal and a page."""
