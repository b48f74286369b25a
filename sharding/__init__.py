"""Takes cohorts of NIfTI files; gives a set of WebDataset shards with index and manifest, and opens such a set again.

It is the lowest stage: what every stage's entry script needs (the command grammar, errors, atomic files, progress)
lives here too, because nothing below it exists.
"""
