"""What lets many processes and machines write one store, and believe what they read: cells in
journals, their merging into parts, leases of what only one may make, seals of what files hold."""
