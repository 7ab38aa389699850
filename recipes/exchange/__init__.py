"""Data in and out: import, export, the dataset card.

May import the stages, the report and the schema.
"""
