"""Requests on their way: the client that keeps servers full, what a chat is asked and says, what it
costs."""
