"""Asking a judge: requests and replies, what is bought once and kept, what is shown of
an answer."""
