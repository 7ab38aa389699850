"""Columns of a recipe's own (`synth.tags.own`): what they are, and how classifiers fill them.

May import what synth.tags may.
"""
