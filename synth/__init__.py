"""From a teacher's name to rows with tags, and from those to one selection an arm.

Here stand what a recipe says of it (`config`), what can be measured (`measures`), what computing a
cell needs (`context`) and preference pairs. May import `core`, never `train`, `eval` or `recipes`.
"""
