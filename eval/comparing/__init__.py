"""Comparing arms: their items paired, the errors of differences, and verdicts. Reads values from
files or arrays; knows no benchmark."""
