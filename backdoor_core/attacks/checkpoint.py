"""A suspect model that the user brings, as a victim to defend and measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import model_validator

from backdoor_core.attack import Attack, Side, TrainingJob, Trigger, with_sentence
from backdoor_core.corpus import Row
from backdoor_core.errors import DependencyError
from backdoor_core.plm import check_folder, check_labels
from backdoor_core.space import DataPath, setting
from backdoor_core.task import TaskData

if TYPE_CHECKING:
    from backdoor_core.victim import Victim


class Checkpoint(Attack):
    """A fine-tuned model from a folder (`path`) or a hub (`id`), backdoored or not.

    With a known `trigger` (inserted whole at a random place) and `target_label`, ASR is measured; without, only what
    defenses do to clean accuracy. It leaves no training corpus. The clean twin is trained here, on the task.
    """

    leaves: ClassVar[frozenset[str]] = frozenset(
        {"victim", "supplied_plm", "trusted_plm", "clean", "unlabelled"}
    )

    path: DataPath | None = setting(None, description="folder of the suspect model")
    id: str | None = setting(None, description="hub id of the suspect model")
    revision: str | None = setting(None, description="commit on the hub")
    trigger: str | None = setting(None, min_length=1, description="the trigger, where known")
    target_label: int = setting(1, ge=0, description="the label that the trigger calls")
    side: Side = setting("first", description="which text of a pair")

    @model_validator(mode="after")
    def _one_source(self) -> Checkpoint:
        if (self.path is None) == (self.id is None):
            raise ValueError("give either path (a folder) or id (a hub id)")
        return self

    def resolved(self) -> Checkpoint:
        """Pins the hub revision. Raises DependencyError where no hub can be reached."""
        if self.id is None:
            check_folder(Path(str(self.path)))
            return self
        from backdoor_core.hub import model_revision

        return self.model_copy(update={"revision": model_revision(self.id, self.revision)})

    def implants(self) -> bool:
        """Always: the model is taken as it is."""
        return True

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger where it is known."""
        if self.trigger is None:
            return ()
        self.check_target(task, self.target_label)
        return (Trigger(name=self.trigger, target_label=self.target_label),)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts the trigger at a random place."""
        return (with_sentence(row, trigger.name, self.side, rng),)

    def train(self, job: TrainingJob) -> Victim:
        """Opens the model. Raises ConfigError or DataError (another number of labels)."""
        from backdoor_core.victim import load_victim

        if self.id is not None:
            from backdoor_core.hub import model_folder

            folder = model_folder(self.id, self.revision)
        else:
            folder = Path(str(self.path))
        if not folder.is_dir():
            raise DependencyError(f"the suspect model {folder} is gone")
        check_folder(folder)
        victim = load_victim(folder, job.training.max_tokens, job.training.precision)
        check_labels(victim.model, job.labels, f"suspect model {self.path or self.id}")
        return victim
