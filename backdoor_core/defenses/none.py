"""No defense: the undefended victim."""

from __future__ import annotations

from backdoor_core.defense import Defense


class NoDefense(Defense):
    """The victim as the attack left it: the baseline of every cell."""
