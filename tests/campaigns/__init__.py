"""Campaigns: thousands of malformed inputs (inputs.py) and hundreds of faults (faults.py), each
with an oracle and a table."""
