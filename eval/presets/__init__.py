"""Judges by name: which model, how it is asked, what it costs, what is known of it. Data, read by
the recipe's blocks; may import nothing."""
