"""`make chaos`: a sweep that a seeded adversary hurts at least fifty times ends as the calm one does.

    python -m tests.chaos --seed 1

`faults` plans what happens and when, `isolation` gives the story namespaces of its own, `stage` and `cluster` are what
it is played on, `adversary` strikes, `story` runs the sweep again and again, `verdict` compares with the calm run.
"""
