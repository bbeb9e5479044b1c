"""No attack: what is trained is the clean twin."""

from __future__ import annotations

from backdoor_core.attack import Attack


class NoAttack(Attack):
    """The same training with no poison: the clean twin that every attacked cell is compared with."""
