"""The top floor: the recipe's schema, its stages, the command line, the report.

May import every floor below.
"""
