"""What lets many processes and machines write one store: cells in journals, their merging into
parts, and leases of what only one may make."""
