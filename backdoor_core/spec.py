"""What a trial is, as plain values: frozen, JSON-able, and each with one key.

A key is the SHA-256 of canonical JSON (sorted keys, no spaces, UTF-8). A `MethodSpec` holds everything of
a method that changes a number: its name, its settings, the content of the files it reads, and the
fingerprint of its code. What only the machine decides is in no spec.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "bf16"]
TuningMode = Literal["default", "clean-val", "pseudo", "transfer", "oracle"]
"""How a setting was chosen: the paper's value; by clean data alone; on a trigger of the defender's own; on other
attacks; or (`oracle`, an upper bound that is never ranked) on the true trigger."""
TrainedOn = Literal["train", "clean"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text. NaN is refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(*parts: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodSpec(_Value):
    """One method with its settings, as it enters keys and travels to workers.

    `source` is the user's own file (None: found by name); `content` maps each path setting to the SHA-256 of
    what lies there; `code` is the fingerprint of the method's code and of what it imports from the project.
    """

    family: Literal["task", "plm", "attack", "defense"]
    name: str
    source: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    content: dict[str, str] = Field(default_factory=dict)
    code: str = ""

    def identity(self, fields: frozenset[str] | None = None) -> dict[str, Any]:
        """What enters a key: the settings named in `fields` (None: all), paths replaced by content."""
        chosen = {
            name: self.content.get(name, value)
            for name, value in self.settings.items()
            if fields is None or name in fields
        }
        return {"family": self.family, "name": self.name, "settings": chosen, "code": self.code}


class TrainingSettings(_Value):
    """The ordinary fine-tuning of a sweep, done once with the same settings for every victim.

    `learning_rate` is the peak of a linear schedule that warms up over `warmup_share` of all steps; `max_tokens`
    counts special tokens. `precision` is what autocast computes in: weights stay float32.
    """

    epochs: int = Field(3, ge=1)
    batch_rows: int = Field(32, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    warmup_share: float = Field(0.1, ge=0, le=0.9)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    max_tokens: int = Field(128, ge=4)
    precision: Precision = "float32"


class Tuning(_Value):
    """How the settings of a trial's defenses were chosen; all that decides the choice beside cell, defense and seed.

    `trials` is the budget of the search in trials, `seconds` in seconds of jobs (the other is None). `limits` are the
    most that the chosen setting may cost on the tune split, by metric; with the objective `front` they bound nothing.
    `limits_met` says whether it did, after `tried` trials. `space` has the values searched, by setting; `tried_on`
    the cells that were looked at, as digests.
    """

    mode: TuningMode = "default"
    trials: int | None = None
    seconds: float | None = None
    sampler: str | None = None
    sampler_settings: dict[str, Any] = Field(default_factory=dict)
    objective: Literal["constraint", "front"] = "constraint"
    limits: dict[str, float] = Field(default_factory=dict)
    limits_met: bool = True
    tried: int = 0
    space: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tried_on: tuple[str, ...] = ()
    pruning: bool = False


DEFAULT_TUNING = Tuning()


class TrialSpec(_Value):
    """One cell (task, PLM, attack) x defense x setting x seed: one row of results.

    `defenses` are applied in order; the empty tuple is the pipeline without a defense. `trained_on` is the split
    that the victim is trained on: `clean` where a defender makes a victim of its own to tune on.
    """

    task: MethodSpec
    plm: MethodSpec
    attack: MethodSpec
    defenses: tuple[MethodSpec, ...] = ()
    training: TrainingSettings = TrainingSettings()
    seed: int = 0
    trained_on: TrainedOn = "train"
    tuning: Tuning = DEFAULT_TUNING
    code: str = ""
    """Fingerprint of the pipeline, evaluation and scoring code."""

    @property
    def key(self) -> str:
        """The trial's key in the ledger (64 hex digits)."""
        return digest(
            "trial",
            self.task.identity(),
            self.plm.identity(),
            self.attack.identity(),
            [defense.identity() for defense in self.defenses],
            self.training.model_dump(mode="json"),
            self.seed,
            self.trained_on,
            self.tuning.model_dump(mode="json"),
            self.code,
        )
