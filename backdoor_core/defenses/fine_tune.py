"""Fine-tuning the suspect model on clean rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoor_core.defense import CleanDataDefense, View
from backdoor_core.space import setting

if TYPE_CHECKING:
    from backdoor_core.victim import Victim


class FineTune(CleanDataDefense):
    """Ordinary fine-tuning of the whole victim on the clean rows: the plainest repair.

    The settings not named here (batch rows, clipping, schedule) are the sweep's ordinary training settings.
    """

    epochs: int = setting(
        3, ge=0, low=1, high=10, stronger="high", description="passes over the clean rows"
    )
    learning_rate: float = setting(
        2e-5,
        gt=0,
        low=1e-5,
        high=1e-3,
        log=True,
        stronger="high",
        description="peak learning rate",
    )

    def repair(self, view: View) -> Victim:
        """The fine-tuned victim; 0 epochs leave it as it is."""
        from backdoor_core.repair import fine_tuned

        return fine_tuned(
            view,
            view.victim,
            view.victim.copy_of_model(),
            epochs=self.epochs,
            learning_rate=self.learning_rate,
        )
