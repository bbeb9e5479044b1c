"""Defenses: what repairs, filters, retrains or guards; and the view through which each sees the world.

A defense overrides hooks of the pipeline and reads everything through its `View`, which holds what its declared
access names and nothing else. What a fitted defense leaves is a `Guard`, whose costly part is `observe`; the cheap
part, `Defense.decide`, is a function of stored observations and of post-hoc settings alone.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, final

import numpy as np
import pyarrow as pa

from backdoor_core.attack import ACCESS
from backdoor_core.corpus import Corpus
from backdoor_core.errors import AccessError, unknown_name
from backdoor_core.method import Method
from backdoor_core.space import hooks_of, setting
from backdoor_core.spec import TrainingSettings

if TYPE_CHECKING:
    from backdoor_core.plm import PLM
    from backdoor_core.victim import Victim

UPSTREAM_HOOKS = ("purify", "filter")
"""Hooks before the victim exists: overriding one of them makes another victim."""
DOWNSTREAM_HOOKS = ("train", "repair", "screen")
"""Hooks whose result is made again when it is asked for: only what the guard observes is stored."""
STAGES = {
    "purify": "pretrained", "filter": "corpus", "train": "training", "repair": "model",
    "screen": "input",
}  # fmt: skip
"""The stage of the pipeline at which a hook acts."""
SINGLE_HOOKS = ("train", "screen")
"""Hooks that only one method of a pipeline can override."""


_LISTENER: ContextVar[Callable[[Victim], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[Victim], None]) -> Iterator[None]:
    """Calls `listener` for each `View.report` of the block. It hangs on no view, so that no defense can reach it."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Steps(Protocol):
    """Where the named steps of a defense are kept: see `View.step`."""

    def folder(
        self, name: str, write: Callable[[Path], None], reads: frozenset[str] | None
    ) -> Path:
        """The folder of the step `name`, written where it is not there yet; `reads`: what it sees (None: all)."""


class View:
    """All that a defense sees: the things that its access names, its seed and the ordinary training settings.

    It has no name for the trigger, the target label, the poison ledger or any test row. Asking for more than was
    declared raises AccessError. What it hands out must not be altered.
    """

    def __init__(
        self,
        granted: Mapping[str, Any],
        *,
        labels: int,
        training: TrainingSettings,
        seed: int,
        trained: Victim | None = None,
        steps: Steps | None = None,
    ) -> None:
        for name in granted:
            if name not in ACCESS:
                raise AccessError(unknown_name("access", name, ACCESS))
        self._granted = dict(granted)
        self._trained = trained
        self._steps = steps
        self._reads: frozenset[str] | None = None
        self.labels = labels
        self.training = training
        self.seed = seed
        self.rankings: dict[str, pa.Table] = {}
        """What `ranked` has published."""

    @property
    def trained(self) -> Victim:
        """What ordinary training leaves: on `corpus`, from the supplied PLM, with `training`.

        Only for a defender who trains (overrides `train`) and so could make it alone; it comes from the store.
        """
        self._check_read("trained")
        if self._trained is None:
            raise AccessError(
                "only a defense that overrides `train` and may see 'corpus' can have the victim "
                "of ordinary training"
            )
        return self._trained

    def step(
        self, name: str, write: Callable[[Path], None], *, reads: Iterable[str] | None = None
    ) -> Path:
        """The folder of a named, costly step, which `write(folder)` fills once for all that share it.

        Trials share a step when they agree in the things that it `reads` (names of `ACCESS`, and `trained`; by
        default all that the view grants), in the seed, the training settings, the code, and in the settings that
        name the step among their `hooks` or name no hook at all. `write` must read no other setting; asking the view
        for another thing while it runs raises AccessError. Tensors as safetensors, tables as Parquet, the rest as
        JSON. Read-only; without a store the folder lives as long as the view.
        """
        limited = None if reads is None else frozenset(reads)

        def written(folder: Path) -> None:
            before, self._reads = self._reads, limited
            try:
                write(folder)
            finally:
                self._reads = before

        if self._steps is None:
            folder = Path(tempfile.mkdtemp(prefix=f"step-{name}-"))
            weakref.finalize(self, shutil.rmtree, str(folder), True)
            written(folder)
            return folder
        return self._steps.folder(name, written, limited)

    def report(self, victim: Victim) -> None:
        """Shows a search what a defense that trains by epochs would leave now; to be called after each epoch.

        Raises PrunedError where the search gives this setting up. Otherwise, and outside a search, nothing happens.
        """
        listener = _LISTENER.get()
        if listener is not None:
            listener(victim)

    def ranked(self, name: str, ids: np.ndarray, chosen: np.ndarray) -> None:
        """Publishes an order of suspicion over token ids, most suspect first, and how many of them were taken.

        `ids`: token ids, int64, shape (ranked,); `chosen`: bool, the same shape. Stored beside the observations,
        where evaluation looks up the rank of the true trigger.
        """
        self.rankings[name] = pa.table(
            {"token_id": pa.array(ids, pa.int32()), "chosen": pa.array(chosen, pa.bool_())}
        )

    def _asked(self, name: str) -> Any:
        if name not in self._granted:
            raise AccessError(
                f"this defense may not see {name!r}: its declared access is "
                f"{sorted(self._granted)}; name it in `access` if its threat model grants it"
            )
        self._check_read(name)
        return self._granted[name]

    def _check_read(self, name: str) -> None:
        if self._reads is not None and name not in self._reads:
            raise AccessError(f"this step says that it reads {sorted(self._reads)}, not {name!r}")

    @property
    def corpus(self) -> Corpus:
        """The rows trained on, poisoned or not."""
        return cast(Corpus, self._asked("corpus"))

    @property
    def victim(self) -> Victim:
        """The suspect fine-tuned model (after the steps of a chain that came before)."""
        return cast("Victim", self._asked("victim"))

    @property
    def supplied_plm(self) -> PLM:
        """The PLM as the user received it, perhaps altered."""
        return cast("PLM", self._asked("supplied_plm"))

    @property
    def trusted_plm(self) -> PLM:
        """Known clean pre-trained weights of the same architecture."""
        return cast("PLM", self._asked("trusted_plm"))

    @property
    def clean(self) -> Corpus:
        """The defender's small clean labelled set (`clean_rows` of the `clean` split)."""
        return cast(Corpus, self._asked("clean"))

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Plain texts without labels: those of `unlabelled_file`, else of the clean split."""
        return cast("tuple[str, ...]", self._asked("unlabelled"))


class Guard(Protocol):
    """What a fitted defense leaves: a frozen thing that classifies texts."""

    def observe(self, corpus: Corpus, split: str | None = None) -> pa.Table:
        """One row a text, in order, with at least `logits` (list<float>) and `prediction` (int64).

        `corpus` has no labels. A row's answer depends on its text and the seed alone, never on the other rows.
        """


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The guard's answer for each row: labels (int64), refused and altered (bool), shape (rows,).

    `refused` and `altered` are None for guards that cannot refuse, or cannot alter a prediction.
    """

    labels: np.ndarray
    refused: np.ndarray | None = None
    altered: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class ModelGuard:
    """The guard that is simply a model."""

    victim: Victim

    def observe(self, corpus: Corpus, split: str | None = None) -> pa.Table:
        """Columns `logits` and `prediction`."""
        logits = self.victim.logits(corpus, split)
        return pa.table(
            {
                "logits": pa.array(list(logits), pa.list_(pa.float32())),
                "prediction": pa.array(logits.argmax(axis=1), pa.int64())
                if len(logits)
                else pa.array([], pa.int64()),
            }
        )


class Defense(Method):
    """A defense. Without any override it is the pipeline as it is: the undefended victim."""

    family: ClassVar = "defense"

    @property
    def access(self) -> frozenset[str]:
        """What it must see, of `attack.ACCESS`; may depend on settings."""
        return frozenset()

    @property
    def asked_clean_rows(self) -> int | None:
        """How many clean rows it wants (None: all of them); read only where `access` names `clean`."""
        return None

    @property
    def unlabelled_file(self) -> Path | None:
        """The plain text file that `unlabelled` comes from (None: the texts of the clean split)."""
        return None

    @property
    def asked_unlabelled_texts(self) -> int | None:
        """How many plain texts it wants (None: all); read only where `access` names `unlabelled`."""
        return None

    @property
    def calibrates(self) -> bool:
        """Whether `decide` needs observations of the clean rows."""
        return False

    @property
    def stage(self) -> str:
        """Where it acts: `pretrained`, `corpus`, `training`, `model` or `input`; `none` without any hook."""
        found = [stage for hook, stage in STAGES.items() if type(self).overrides(hook)]
        return "+".join(found) or "none"

    def effect(self, view: View) -> Any:
        """What the settings that only this hook reads come to on `view`, where many can come to the same (JSON).

        Trials that agree in the effect and in all other settings share one fit and one observation.
        """
        return None

    def purify(self, view: View) -> PLM:
        """Another PLM in place of the supplied one, before fine-tuning."""
        raise NotImplementedError

    def filter(self, view: View) -> Corpus:
        """The rows to train on."""
        raise NotImplementedError

    def train(self, view: View) -> Victim:
        """The victim, where the defender trains it."""
        raise NotImplementedError

    def repair(self, view: View) -> Victim:
        """Another victim in place of the suspect one; the suspect's weights must not move."""
        raise NotImplementedError

    def screen(self, view: View) -> Guard:
        """A guard around the victim."""
        raise NotImplementedError

    def decide(self, observation: pa.Table, calibration: pa.Table | None) -> Decision:
        """The answer for each observed row. Reads only post-hoc settings, never a model.

        `calibration` is the observation of the clean rows (None unless `calibrates`). Default: the prediction.
        """
        return Decision(labels=observation["prediction"].to_numpy())

    @final
    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Whether this defense implements `hook`."""
        return getattr(cls, hook) is not getattr(Defense, hook)

    @final
    @classmethod
    def post_hoc_settings(cls) -> frozenset[str]:
        """Settings that only `decide` reads: they cost no new observation."""
        return cls._read_only_by("decide")

    @final
    @classmethod
    def effect_settings(cls) -> frozenset[str]:
        """Settings that only `effect` reads: those with an equal effect cost no new observation."""
        return cls._read_only_by("effect")

    @final
    @classmethod
    def _read_only_by(cls, hook: str) -> frozenset[str]:
        return frozenset(
            name for name, field in cls.model_fields.items() if hooks_of(field) == {hook}
        )


class CleanDataDefense(Defense):
    """A defense that uses some rows of the `clean` split."""

    clean_rows: int | None = setting(
        None, ge=1, description="rows of the clean split that it uses (null: all)"
    )

    @property
    def access(self) -> frozenset[str]:
        """The suspect model and the clean rows."""
        return frozenset({"victim", "clean"})

    @final
    @property
    def asked_clean_rows(self) -> int | None:
        """The setting `clean_rows`."""
        return self.clean_rows


def clash(defenses: tuple[Defense, ...]) -> str | None:
    """Why these defenses cannot be chained, or None where they can."""
    for hook in SINGLE_HOOKS:
        both = [d.catalog_name() for d in defenses if type(d).overrides(hook)]
        if len(both) > 1:
            return f"{' and '.join(both)} both override `{hook}`, which only one method can"
    return None
