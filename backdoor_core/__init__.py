"""Backdoor attacks, defenses and their evaluation on text classifiers.

Importing this package imports neither torch nor ray; each module imports what it needs.
"""

__version__ = "0.1.0"
