"""The one pipeline: its artifacts, their keys, and how each is built from the ones before.

    PLM - corrupt - purify -+
    corpus - poison - filter +- train - victim - repair - screen - guard - observe - decide

Every output is an artifact whose key is the SHA-256 of the hook, the method, the settings that the hook reads, the
code, the keys of its inputs and the seed. `Pipeline` has one trial's keys (no torch, no files); `Workshop` builds
what is missing from a store, and rebuilds what was damaged. Models repaired on the way are not stored: a repair is
deterministic, so `Workshop.guard` makes it again when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backdoor_core import catalog
from backdoor_core.attack import Attack, Poisoned, TrainingJob, Trigger
from backdoor_core.corpus import Corpus
from backdoor_core.defense import DOWNSTREAM_HOOKS, UPSTREAM_HOOKS, Defense, Guard, ModelGuard, View
from backdoor_core.errors import ConfigError, DataError, SweepError
from backdoor_core.fingerprint import code_fingerprint
from backdoor_core.measure import Measured, measured
from backdoor_core.plm import PLM, PLMSource
from backdoor_core.records import plain_lines
from backdoor_core.rng import derive, generator
from backdoor_core.space import hooks_of
from backdoor_core.spec import MethodSpec, TrialSpec, canonical_json, digest
from backdoor_core.store import ArtifactStore, Shelf
from backdoor_core.task import SPLITS, Task, TaskData
from backdoor_core.text import Encoded, Encoder, read_encoded, write_encoded

if TYPE_CHECKING:
    from backdoor_core.victim import Victim

SCORED_SPLITS = ("tune", "test")
TRUNCATED_SHARE = 0.5
"""Where the trigger is cut off in more of the triggered rows than this, nothing is measured."""
REMEMBERED = 3
"""Victims, tables and so on of each kind that a workshop keeps in memory: a job works on few."""
_CODE_MODULES = ("backdoor_core.pipeline",)


@dataclass(frozen=True)
class Pipeline:
    """One trial's methods and the keys of its artifacts."""

    spec: TrialSpec

    @cached_property
    def task(self) -> Task:
        """The task."""
        return cast(Task, catalog.from_spec(self.spec.task))

    @cached_property
    def attack(self) -> Attack:
        """The attack."""
        return cast(Attack, catalog.from_spec(self.spec.attack))

    @cached_property
    def defenses(self) -> tuple[Defense, ...]:
        """The defenses, in order."""
        return tuple(cast(Defense, catalog.from_spec(spec)) for spec in self.spec.defenses)

    @cached_property
    def undefended(self) -> Pipeline:
        """The same cell and seed without any defense."""
        return Pipeline(self.spec.model_copy(update={"defenses": ()}))

    @cached_property
    def twin(self) -> Pipeline:
        """The clean twin: the same task, PLM, training and seed with no attack and no defense."""
        none = catalog.make("attack", "none", {}).spec()
        return Pipeline(self.spec.model_copy(update={"attack": none, "defenses": ()}))

    def _code(self) -> str:
        return code_fingerprint(*_CODE_MODULES)

    def _attack_identity(self, *hooks: str) -> dict[str, Any]:
        return self.spec.attack.identity(type(self.attack).fields_read_by(*hooks))

    def overriding(self, *hooks: str) -> list[int]:
        """The places of the defenses that override any of `hooks`."""
        return [
            index
            for index, defense in enumerate(self.defenses)
            if any(type(defense).overrides(hook) for hook in hooks)
        ]

    def _defense_identities(self, *hooks: str, effects: bool = False) -> list[dict[str, Any]]:
        """Identities of the defenses that override `hooks`, without settings that only `decide` reads.

        Those that only `effect` reads enter with `effects` alone: observations have them by what they come to.
        """
        identities = []
        for index in self.overriding(*hooks):
            spec, kind = self.spec.defenses[index], type(self.defenses[index])
            left_out = kind.post_hoc_settings() | (set() if effects else kind.effect_settings())
            identities.append(spec.identity(frozenset(spec.settings) - left_out))
        return identities

    @property
    def attacker_trains(self) -> bool:
        """Whether the attack overrides `train`."""
        return type(self.attack).train is not Attack.train

    @property
    def attacker_corrupts(self) -> bool:
        """Whether the attack overrides `corrupt`."""
        return type(self.attack).corrupt is not Attack.corrupt

    @cached_property
    def task_key(self) -> str:
        """The four splits."""
        return digest("task", self.spec.task.identity())

    @cached_property
    def plm_key(self) -> str:
        """The PLM as it comes from its source: what `trusted_plm` is."""
        return digest("plm", self.spec.plm.identity())

    @cached_property
    def tokens_key(self) -> str:
        """The splits' token ids."""
        limit = self.spec.training.max_tokens
        return digest(
            "tokens", self.task_key, self.plm_key, limit, code_fingerprint("backdoor_core.text")
        )

    @cached_property
    def gathered_key(self) -> str:
        """What the attack makes once for the task, whatever the seed."""
        return digest("gather", self._attack_identity("gather"), self.task_key, self._code())

    @cached_property
    def triggers_key(self) -> str:
        """The triggers, and the triggered rows of the scored splits."""
        return digest("triggers", self._attack_identity("gather", "prepare", "stamp"),
                      self.task_key, self.spec.seed, self._code())  # fmt: skip

    @cached_property
    def supplied_key(self) -> str:
        """The PLM as the user receives it."""
        if not (self.attacker_corrupts and self.attack.implants()):
            return self.plm_key
        gathered = [self.gathered_key] if self.attack.gathers else []
        return digest("corrupt", self._attack_identity("prepare", "stamp", "corrupt"), gathered,
                      self.plm_key, self.spec.seed, self._code())  # fmt: skip

    @property
    def is_poisoned(self) -> bool:
        """Whether the attack alters the rows to train on."""
        return type(self.attack).poison is not Attack.poison and self.attack.implants()

    @cached_property
    def poison_key(self) -> str:
        """The rows to train on: the clean ones where nothing is poisoned."""
        if not self.is_poisoned:
            whole = self.spec.trained_on == "train"
            return self.task_key if whole else digest("rows", self.task_key, self.spec.trained_on)
        return digest("poison", self._attack_identity("gather", "prepare", "stamp", "poison"),
                      self.task_key, self.spec.trained_on, self.spec.seed, self._code())  # fmt: skip

    @cached_property
    def victim_key(self) -> str:
        """The fine-tuned model, after the defenses that work before or in training."""
        training = self.spec.training.model_dump(mode="json")
        attack = self.spec.attack.identity() if self.attacker_trains else None
        inputs = [self.task_key, self.poison_key, self.supplied_key]
        upstream = self._defense_identities(*UPSTREAM_HOOKS, effects=True)
        trusted = [self.plm_key] if upstream else []
        return digest(
            "victim", attack, upstream, inputs, trusted, training, self.spec.seed, self._code()
        )

    def filtered_key(self, index: int) -> str:
        """The rows that are left after the filter of the defense at `index`."""
        filters = [i for i in self.overriding("filter") if i <= index]
        identities = [self.spec.defenses[i].identity() for i in filters]
        inputs = [self.task_key, self.poison_key, self.supplied_key, self.plm_key]
        training = self.spec.training.model_dump(mode="json")
        return digest("filtered", identities, inputs, training, self.spec.seed, self._code())

    def step_inputs(self, index: int) -> dict[str, str]:
        """The key of each thing that a named step of the defense at `index` may read.

        Under "" is what every step depends on.
        """
        defense = self.defenses[index]
        before = [
            self.spec.defenses[i].identity(
                frozenset(self.spec.defenses[i].settings) - self.defenses[i].post_hoc_settings()
            )
            for i in range(index)
        ]
        filters = self.overriding("filter")
        keys = {
            "corpus": self.filtered_key(filters[-1]) if filters else self.poison_key,
            "victim": digest(self.victim_key, before),
            "supplied_plm": digest(self.supplied_key, before),
            "trusted_plm": self.plm_key,
            "clean": digest(self.task_key, self.spec.seed),
            "unlabelled": digest(self.task_key, self.spec.seed),
        }
        granted = {name: keys[name] for name in sorted(defense.access)}
        if type(defense).overrides("train"):
            granted["trained"] = self.victim_key
        training = self.spec.training.model_dump(mode="json")
        return {"": digest(training, self.spec.seed, self._code()), **granted}

    @cached_property
    def clean_observed_key(self) -> str:
        """The undefended victim's observations of clean rows."""
        return digest("observed-clean", self.victim_key, self.task_key, self._code())

    def triggered_observed_key(self, triggers_key: str) -> str:
        """This victim's observations of the rows that `triggers_key` stamped."""
        return digest("observed-triggered", self.victim_key, triggers_key, self._code())

    @cached_property
    def guard_key(self) -> str:
        """The fitted guard: all but the settings that only `decide` or `effect` reads enter."""
        downstream = self._defense_identities(*DOWNSTREAM_HOOKS)
        inputs = [self.victim_key, self.undefended.victim_key, self.poison_key, self.plm_key]
        return digest("guard", downstream, inputs, self.spec.seed, self._code())

    @cached_property
    def observed_key(self) -> str:
        """The guard's observations, clean and triggered; with `effects`, see `Workshop.observed_key`."""
        return digest("observed", self.guard_key, self.triggers_key, self._code())

    @property
    def effective(self) -> bool:
        """Whether any defense has settings that only its `effect` reads."""
        return any(type(defense).effect_settings() for defense in self.defenses)

    @property
    def is_guarded(self) -> bool:
        """Whether any defense does anything after training."""
        return bool(self.overriding(*DOWNSTREAM_HOOKS))

    @property
    def calibrates(self) -> bool:
        """Whether deciding needs observations of the defender's clean rows."""
        return any(defense.calibrates for defense in self.defenses)


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Tables of `Guard.observe`: clean rows by split, triggered rows by split and trigger, clean rows to calibrate.

    `key` is the artifact's; `facts` its cost and machine.
    """

    clean: Mapping[str, pa.Table]
    triggered: Mapping[str, tuple[pa.Table, ...]]
    calibration: pa.Table | None
    rankings: Mapping[str, pa.Table]
    """Token ids by suspicion, as `View.ranked` publishes them, by `defense/name`."""
    key: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class KeptSteps:
    """The named steps of one defense in one pipeline, in the store. Knows nothing of the attack but keys."""

    shelf: Shelf
    spec: MethodSpec
    readers: Mapping[str, frozenset[str]]
    """The hooks that each setting names."""
    inputs: Mapping[str, str]
    """The key of each thing that a step may read, as `Pipeline.step_inputs` gives them."""

    def folder(
        self, name: str, write: Callable[[Path], None], reads: frozenset[str] | None
    ) -> Path:
        """The step's folder, from the store, or written there now; its facts say what it was made of."""
        read = frozenset(f for f, hooks in self.readers.items() if not hooks or name in hooks)
        inputs = {k: v for k, v in self.inputs.items() if not k or reads is None or k in reads}
        identity = self.spec.identity(read)

        def told(folder: Path) -> dict[str, Any]:
            write(folder)
            return {"step": {"name": name, "method": identity, "inputs": inputs}}

        return self.shelf.ensured(digest("step", name, identity, inputs), told)


class Workshop:
    """Builds the artifacts of pipelines in one store, each at most once."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.shelf = Shelf(store)
        self._memory: dict[str, dict[str, Any]] = {}

    @property
    def notices(self) -> list[str]:
        """What the user should be told."""
        return self.shelf.notices

    def remembered(
        self, kind: str, key: str, make: Callable[[], Any], *, most: int = REMEMBERED
    ) -> Any:
        """What `make` gives, made once for a key while this workshop lives (one job); the last few are kept."""
        kept = self._memory.setdefault(kind, {})
        if key not in kept:
            while len(kept) >= most:
                kept.pop(next(iter(kept)))
            kept[key] = make()
        return kept[key]

    def task_data(self, pipeline: Pipeline) -> TaskData:
        """The four splits of the task."""

        def write(folder: Path) -> dict[str, Any]:
            data = pipeline.task.load()
            for name, corpus in data.splits.items():
                pq.write_table(corpus.table, folder / f"{name}.parquet")
            return {"label_names": list(data.label_names), "notes": list(data.notes),
                    "synthetic": data.synthetic, "hashes": data.hashes}  # fmt: skip

        def read() -> TaskData:
            folder = self.shelf.ensured(pipeline.task_key, write)
            facts = self.store.facts(pipeline.task_key)
            return TaskData(
                splits={name: Corpus(pq.read_table(folder / f"{name}.parquet")) for name in SPLITS},
                label_names=tuple(facts["label_names"]),
                notes=tuple(facts["notes"]),
                synthetic=bool(facts["synthetic"]),
            )

        return cast(TaskData, self.remembered("task", pipeline.task_key, read))

    def plm(self, pipeline: Pipeline) -> PLM:
        """The PLM as it comes from its source."""
        key = pipeline.plm_key

        def write(folder: Path) -> dict[str, Any]:
            with measured() as cost:
                facts = cast(PLMSource, catalog.from_spec(pipeline.spec.plm)).materialise(folder)
            return facts | cost.facts()

        return cast(
            PLM, self.remembered("plm", key, lambda: PLM(folder=self.shelf.ensured(key, write)))
        )

    def encoder(self, pipeline: Pipeline) -> Encoder:
        """The PLM's tokenizer with the splits' token ids, mapped from disk."""
        return cast(
            Encoder,
            self.remembered("encoder", pipeline.tokens_key, lambda: self._encoder(pipeline)),
        )

    def _encoder(self, pipeline: Pipeline) -> Encoder:
        data, plm = self.task_data(pipeline), self.plm(pipeline)
        limit = pipeline.spec.training.max_tokens
        plain = Encoder(tokenizer=plm.tokenizer(), max_tokens=limit)

        def write(folder: Path) -> None:
            for name, corpus in data.splits.items():
                write_encoded(plain(corpus), folder / f"{name}.arrow")

        folder = self.shelf.ensured(pipeline.tokens_key, write)
        known: dict[str, tuple[Corpus, Encoded]] = {
            name: (corpus, read_encoded(folder / f"{name}.arrow"))
            for name, corpus in data.splits.items()
        }
        return Encoder(tokenizer=plain.tokenizer, max_tokens=limit, known=known)

    def attack(self, pipeline: Pipeline) -> Attack:
        """The attack, with what it gathers once for the task."""
        attack = pipeline.attack
        if not attack.gathers:
            return attack

        def write(folder: Path) -> dict[str, Any]:
            with measured() as cost:
                attack.gather(self.task_data(pipeline), folder)
            return cost.facts()

        return attack.equipped(self.shelf.ensured(pipeline.gathered_key, write))

    def triggers(
        self, pipeline: Pipeline
    ) -> tuple[tuple[Trigger, ...], dict[str, tuple[Corpus, ...]]]:
        """The triggers, and for each scored split its rows stamped with each of them."""
        seed = pipeline.spec.seed

        def write(folder: Path) -> None:
            data, attack = self.task_data(pipeline), self.attack(pipeline)
            triggers = attack.prepare(data, seed)
            for split in SCORED_SPLITS:
                for i, trigger in enumerate(triggers):
                    rows = attack.triggered(data.splits[split], split, trigger, seed)
                    if not len(rows):
                        raise DataError(
                            f"attack {attack.catalog_name()}: no row of the {split} split can carry "
                            f"the trigger {trigger.name!r}; ASR has no denominator"
                        )
                    pq.write_table(rows.table, folder / f"{split}-{i}.parquet")
            listed = [trigger.model_dump(mode="json") for trigger in triggers]
            (folder / "triggers.json").write_text(canonical_json(listed), encoding="utf-8")

        def read() -> tuple[tuple[Trigger, ...], dict[str, tuple[Corpus, ...]]]:
            folder = self.shelf.ensured(pipeline.triggers_key, write)
            listed = json.loads((folder / "triggers.json").read_text(encoding="utf-8"))
            triggers = tuple(Trigger.model_validate(item) for item in listed)
            rows = {
                split: tuple(
                    Corpus(pq.read_table(folder / f"{split}-{i}.parquet"))
                    for i in range(len(triggers))
                )
                for split in SCORED_SPLITS
            }
            return triggers, rows

        return cast(
            "tuple[tuple[Trigger, ...], dict[str, tuple[Corpus, ...]]]",
            self.remembered("triggers", pipeline.triggers_key, read),
        )

    def _asked_clean(self, pipeline: Pipeline) -> dict[str, Corpus]:
        """The scored splits without labels: what a guard is asked about."""
        splits = self.task_data(pipeline).splits
        return cast(
            "dict[str, Corpus]",
            self.remembered(
                "asked clean",
                pipeline.task_key,
                lambda: {split: _unlabelled(splits[split]) for split in SCORED_SPLITS},
            ),
        )

    def asked(self, pipeline: Pipeline, split: str) -> tuple[Corpus, np.ndarray]:
        """The clean rows of a scored split without labels, and apart from them their true labels."""
        labels = self.task_data(pipeline).splits[split].labels.copy()
        return self._asked_clean(pipeline)[split], labels

    def _asked_triggered(self, pipeline: Pipeline) -> dict[str, tuple[Corpus, ...]]:
        """The triggered rows of each scored split, by trigger, without labels."""
        _, rows = self.triggers(pipeline)
        return cast(
            "dict[str, tuple[Corpus, ...]]",
            self.remembered(
                "asked triggered",
                pipeline.triggers_key,
                lambda: {split: tuple(map(_unlabelled, found)) for split, found in rows.items()},
            ),
        )

    def supplied_plm(self, pipeline: Pipeline) -> PLM:
        """The PLM as the user receives it: altered where the attack corrupts PLMs."""
        if pipeline.supplied_key == pipeline.plm_key:
            return self.plm(pipeline)

        def write(folder: Path) -> dict[str, Any]:
            with measured() as cost:
                seed = derive(pipeline.spec.seed, "corrupt")
                altered = self.attack(pipeline).corrupt(self.plm(pipeline), seed)
                for file in altered.folder.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())
            return cost.facts()

        return PLM(folder=self.shelf.ensured(pipeline.supplied_key, write))

    def poisoned(self, pipeline: Pipeline) -> Poisoned:
        """The rows to train on and the attacker's ledger of them."""
        rows = self.task_data(pipeline).splits[pipeline.spec.trained_on]
        if not pipeline.is_poisoned:
            return Poisoned(
                corpus=rows, poisoned=np.zeros(len(rows), bool), asked_rows=0, reached_rows=0
            )

        def write(folder: Path) -> dict[str, Any]:
            triggers, _ = self.triggers(pipeline)
            attack = self.attack(pipeline)
            made = attack.poison(rows, triggers, pipeline.spec.seed)
            pq.write_table(made.corpus.table, folder / "corpus.parquet")
            pq.write_table(pa.table({"poisoned": made.poisoned}), folder / "ledger.parquet")
            return {"asked_rows": made.asked_rows, "reached_rows": made.reached_rows,
                    "unstampable_rows": made.unstampable_rows}  # fmt: skip

        def read() -> Poisoned:
            folder = self.shelf.ensured(pipeline.poison_key, write)
            facts = self.store.facts(pipeline.poison_key)
            return Poisoned(
                corpus=Corpus(pq.read_table(folder / "corpus.parquet")),
                poisoned=pq.read_table(folder / "ledger.parquet")["poisoned"].to_numpy(),
                asked_rows=int(facts["asked_rows"]),
                reached_rows=int(facts["reached_rows"]),
                unstampable_rows=int(facts["unstampable_rows"]),
            )

        return cast(Poisoned, self.remembered("poisoned", pipeline.poison_key, read))

    def trigger_tokens(self, pipeline: Pipeline) -> tuple[tuple[np.ndarray, ...], ...]:
        """For each trigger and each of its triggered test rows, the token ids that the trigger brought.

        Ids that stand in the row more often than in its original.
        """
        return self._stamped(pipeline)[0]

    def truncated_share(self, pipeline: Pipeline) -> float:
        """The share of triggered test rows in which max_tokens leaves nothing of the trigger.

        Raises DataError where that is most of them: such a number would measure nothing.
        """
        brought, hidden = self._stamped(pipeline)
        total = sum(map(len, brought))
        if hidden > TRUNCATED_SHARE * total:
            raise DataError(
                f"attack {pipeline.attack.catalog_name()}: max_tokens "
                f"{pipeline.spec.training.max_tokens} cuts the trigger away in {hidden} of {total} "
                "triggered test rows; raise training.max_tokens or move the trigger forward"
            )
        return hidden / total if total else 0.0

    def _stamped(self, pipeline: Pipeline) -> tuple[tuple[tuple[np.ndarray, ...], ...], int]:
        """What `trigger_tokens` gives, and in how many of these rows the tokens are the original's."""
        if not self.triggers(pipeline)[0]:
            return (), 0
        # A victim that the attacker brings has a tokenizer of its own.
        brings = pipeline.attacker_trains

        def make() -> tuple[tuple[tuple[np.ndarray, ...], ...], int]:
            encoder = self.victim(pipeline).encoder if brings else self.encoder(pipeline)
            clean = encoder(self._asked_clean(pipeline)["test"], "test")
            brought, hidden = [], 0
            for corpus in self._asked_triggered(pipeline)["test"]:
                stamped = encoder(corpus)
                pairs = [(stamped.row(i), clean.row(o)) for i, o in enumerate(corpus.origins)]
                brought.append(tuple(_more_often(row, original) for row, original in pairs))
                hidden += sum(np.array_equal(row, original) for row, original in pairs)
            return tuple(brought), hidden

        key = pipeline.victim_key if brings else pipeline.tokens_key
        return cast(
            "tuple[tuple[tuple[np.ndarray, ...], ...], int]",
            self.remembered("stamped", f"{pipeline.triggers_key}/{key}", make),
        )

    def victim(self, pipeline: Pipeline) -> Victim:
        """The fine-tuned model that the attack (and the defenses before training) left."""
        from backdoor_core.victim import load_victim

        def write(folder: Path) -> dict[str, Any]:
            if not pipeline.attacker_trains:
                self.truncated_share(pipeline)  # before the hours of training, not after
            with measured() as cost:
                victim = self._trained(pipeline)
            victim.save(folder)
            return cost.facts()

        folder = self.shelf.ensured(pipeline.victim_key, write)
        training = pipeline.spec.training

        def load() -> Victim:
            victim = load_victim(folder, training.max_tokens, training.precision)
            if pipeline.attacker_trains:
                return victim
            return replace(victim, encoder=self.encoder(pipeline))

        return cast("Victim", self.remembered("victim", pipeline.victim_key, load))

    def corpus(self, pipeline: Pipeline) -> tuple[Corpus, dict[str, pa.Table]]:
        """The rows to train on after the defenses' filters, and the rankings that these published."""
        corpus = self.poisoned(pipeline).corpus
        rankings: dict[str, pa.Table] = {}
        for index in pipeline.overriding("filter"):
            folder = self.shelf.ensured(
                pipeline.filtered_key(index), partial(self._filter, pipeline, index, corpus)
            )
            corpus = Corpus(pq.read_table(folder / "corpus.parquet"))
            rankings |= _read_rankings(folder)
        return corpus, rankings

    def _filter(self, pipeline: Pipeline, index: int, corpus: Corpus, folder: Path) -> None:
        view = self._view(pipeline, index, None, corpus, self.supplied_plm(pipeline))
        kept = pipeline.defenses[index].filter(view)
        pq.write_table(kept.table, folder / "corpus.parquet")
        _write_rankings(folder, _named(pipeline, index, view))

    def _trained(self, pipeline: Pipeline) -> Victim:
        from backdoor_core.training import cross_entropy, train
        from backdoor_core.victim import Victim

        spec = pipeline.spec
        labels = len(self.task_data(pipeline).label_names)
        corpus, _ = self.corpus(pipeline)
        plm = self.supplied_plm(pipeline)
        for index in pipeline.overriding("purify"):
            view = self._view(pipeline, index, None, corpus, plm)
            plm = pipeline.defenses[index].purify(view)
        seed = derive(spec.seed, "train")
        if pipeline.attacker_trains:
            return self.attack(pipeline).train(
                TrainingJob(
                    plm=plm,
                    corpus=corpus,
                    labels=labels,
                    training=spec.training,
                    seed=seed,
                    clean_victim=lambda: self.victim(pipeline.twin),
                )
            )
        model, _ = plm.classifier(labels, seed)
        encoder = self.encoder(pipeline)
        encoded = encoder(corpus, spec.trained_on)
        train(model, encoded, cross_entropy(corpus.labels), spec.training, seed)
        return Victim(model=model, encoder=encoder, precision=spec.training.precision)

    def _view(
        self, pipeline: Pipeline, index: int, victim: Victim | None, corpus: Corpus, supplied: PLM
    ) -> View:
        """What the defense at `index` may see, and nothing else."""
        defense, spec = pipeline.defenses[index], pipeline.spec.defenses[index]
        denied = defense.access - pipeline.attack.leaves
        if denied:
            raise ConfigError(
                f"defense {defense.catalog_name()} needs {sorted(denied)}, which attack "
                f"{pipeline.attack.catalog_name()} does not leave"
            )
        data = self.task_data(pipeline)
        sources: dict[str, Callable[[], Any]] = {
            "corpus": lambda: corpus,
            "victim": lambda: victim,
            "supplied_plm": lambda: supplied,
            "trusted_plm": lambda: self.plm(pipeline),
            "clean": lambda: self._clean_rows(pipeline, defense, data),
            "unlabelled": lambda: self._unlabelled_texts(pipeline, defense, data),
        }
        # Before training there is no victim yet: asking for it raises, rather than giving None.
        granted = defense.access - ({"victim"} if victim is None else set())
        trains = type(defense).overrides("train") and "corpus" in defense.access
        return View(
            {name: sources[name]() for name in sorted(granted)},
            labels=len(data.label_names),
            training=pipeline.spec.training,
            seed=derive(pipeline.spec.seed, "defense", spec.name),
            trained=self._shown(pipeline) if trains else None,
            steps=KeptSteps(
                shelf=self.shelf,
                spec=spec,
                readers={n: hooks_of(f) for n, f in type(defense).model_fields.items()},
                inputs=pipeline.step_inputs(index),
            ),
        )

    def _shown(self, pipeline: Pipeline) -> Victim:
        """The victim as defenders are given it: its encoder knows no split of the task, whose labels are secret."""

        def make() -> Victim:
            victim = self.victim(pipeline)
            return replace(victim, encoder=victim.encoder.bare())

        return cast("Victim", self.remembered("shown", pipeline.victim_key, make))

    @staticmethod
    def _unlabelled_texts(pipeline: Pipeline, defense: Defense, data: TaskData) -> tuple[str, ...]:
        """A seeded choice of plain texts: fewer are always among more."""
        file = defense.unlabelled_file
        texts = data.splits["clean"].all_texts if file is None else plain_lines(file)
        order = generator(pipeline.spec.seed, "unlabelled texts").permutation(len(texts))
        return tuple(texts[i] for i in order[: defense.asked_unlabelled_texts])

    @staticmethod
    def _clean_rows(pipeline: Pipeline, defense: Defense, data: TaskData) -> Corpus:
        """A seeded choice of the defender's clean rows: fewer rows are always among more rows."""
        clean = data.splits["clean"]
        order = generator(pipeline.spec.seed, "clean rows").permutation(len(clean))
        return clean.take(order[: defense.asked_clean_rows])

    def clean_rows_used(self, pipeline: Pipeline) -> int | None:
        """The most clean rows that any defense of the pipeline uses; None where none uses any."""
        data = self.task_data(pipeline)
        counts = [
            len(self._clean_rows(pipeline, defense, data))
            for defense in pipeline.defenses
            if "clean" in defense.access
        ]
        return max(counts) if counts else None

    def repaired(self, pipeline: Pipeline) -> tuple[Victim, Guard]:
        """The victim after all repairs, and the guard around it. Made now, never stored."""
        victim, guard, _ = self._fitted(pipeline)
        return victim, guard

    def _fitted(self, pipeline: Pipeline) -> tuple[Victim, Guard, dict[str, pa.Table]]:
        """The victim after all repairs, the guard around it, and the rankings that defenses published."""
        corpus, rankings = self.corpus(pipeline)
        supplied = self.supplied_plm(pipeline)
        victim = self._shown(pipeline)
        guard: Guard | None = None
        for index in pipeline.overriding(*DOWNSTREAM_HOOKS):
            defense = pipeline.defenses[index]
            for hook in DOWNSTREAM_HOOKS:
                if not type(defense).overrides(hook):
                    continue
                view = self._view(
                    pipeline, index, None if hook == "train" else victim, corpus, supplied
                )
                if hook == "screen":
                    guard = defense.screen(view)
                else:
                    victim = getattr(defense, hook)(view)
                rankings |= _named(pipeline, index, view)
        return victim, guard or ModelGuard(victim=victim), rankings

    def observed_key(self, pipeline: Pipeline) -> str:
        """The key of the guard's observations: by what its settings come to, where `Defense.effect` says so."""
        if not pipeline.effective:
            return pipeline.observed_key
        (corpus, _), supplied = self.corpus(pipeline), self.supplied_plm(pipeline)
        effects = [
            defense.effect(self._view(pipeline, index, None, corpus, supplied))
            if type(defense).effect_settings()
            else None
            for index, defense in enumerate(pipeline.defenses)
        ]
        return digest("observed", pipeline.observed_key, effects)

    def clean_observations(self, pipeline: Pipeline) -> Mapping[str, pa.Table]:
        """The undefended victim on the clean rows of each scored split."""

        def write(folder: Path) -> dict[str, Any]:
            guard = ModelGuard(victim=self.victim(pipeline))
            with measured() as cost:
                for split, corpus in self._asked_clean(pipeline).items():
                    pq.write_table(guard.observe(corpus, split), folder / f"{split}.parquet")
            return cost.facts()

        key = pipeline.clean_observed_key

        def read() -> Mapping[str, pa.Table]:
            folder = self.shelf.ensured(key, write)
            return {split: pq.read_table(folder / f"{split}.parquet") for split in SCORED_SPLITS}

        return cast("Mapping[str, pa.Table]", self.remembered("clean", key, read))

    def triggered_observations(
        self, pipeline: Pipeline, stamped_by: Pipeline
    ) -> Mapping[str, tuple[pa.Table, ...]]:
        """`pipeline`'s undefended victim on the triggered rows of another pipeline (or its own)."""
        rows = self._asked_triggered(stamped_by)

        def write(folder: Path) -> dict[str, Any]:
            guard = ModelGuard(victim=self.victim(pipeline))
            with measured() as cost:
                for split, corpora in rows.items():
                    for i, corpus in enumerate(corpora):
                        table = guard.observe(corpus, split)
                        pq.write_table(table, folder / f"{split}-{i}.parquet")
            return cost.facts()

        key = pipeline.triggered_observed_key(stamped_by.triggers_key)

        def read() -> Mapping[str, tuple[pa.Table, ...]]:
            folder = self.shelf.ensured(key, write)
            return {
                split: tuple(
                    pq.read_table(folder / f"{split}-{i}.parquet") for i in range(len(corpora))
                )
                for split, corpora in rows.items()
            }

        return cast("Mapping[str, tuple[pa.Table, ...]]", self.remembered("triggered", key, read))

    def observations(
        self, pipeline: Pipeline, splits: tuple[str, ...] = SCORED_SPLITS
    ) -> Observations:
        """The guard on the clean and triggered rows of `splits`, and on the rows that it calibrates with.

        Splits that are not asked for are not looked at: a search reads `tune` alone.
        """
        if not pipeline.is_guarded:
            clean = self.clean_observations(pipeline)
            triggered = self.triggered_observations(pipeline, pipeline)
            return Observations(
                clean={split: clean[split] for split in splits},
                triggered={split: triggered[split] for split in splits},
                calibration=None,
                rankings={},
                key=pipeline.clean_observed_key,
                facts=self.store.facts(pipeline.clean_observed_key),
            )
        key = self.observed_key(pipeline)
        return cast(
            Observations,
            self.remembered(
                f"observations {splits}", key, lambda: self._observed(pipeline, key, splits)
            ),
        )

    def _observed(self, pipeline: Pipeline, key: str, splits: tuple[str, ...]) -> Observations:
        """What is stored of a guard, made now where it is not: one fit serves all that is missing."""

        def fitted() -> tuple[Guard, dict[str, pa.Table], Measured]:
            def fit() -> tuple[Guard, dict[str, pa.Table], Measured]:
                with measured() as cost:
                    _, guard, rankings = self._fitted(pipeline)
                return guard, rankings, cost

            made = self.remembered("fitted", key, fit, most=1)
            return cast("tuple[Guard, dict[str, pa.Table], Measured]", made)

        def write(folder: Path) -> dict[str, Any]:
            guard, rankings, fit = fitted()
            with measured() as observing:
                self._calibrate(pipeline, guard, folder)
            _write_rankings(folder, rankings)
            return observing.facts() | {
                "fit_s": fit.seconds,
                "peak_rss_gib": max(fit.peak_rss_gib, observing.peak_rss_gib),
            }

        def write_split(split: str, folder: Path) -> dict[str, Any]:
            guard = fitted()[0]
            with measured() as observing:
                self._observe(pipeline, guard, split, folder)
            return observing.facts()

        base = self.shelf.ensured(key, write)
        folders = {
            split: self.shelf.ensured(split_key(key, split), partial(write_split, split))
            for split in splits
        }
        counts = {split: len(self._asked_triggered(pipeline)[split]) for split in splits}
        own, parts = self.store.facts(key), [self.store.facts(split_key(key, s)) for s in splits]
        calibration = base / "calibration.parquet"
        return Observations(
            clean={s: pq.read_table(folder / "clean.parquet") for s, folder in folders.items()},
            triggered={
                s: tuple(pq.read_table(f / f"triggered-{i}.parquet") for i in range(counts[s]))
                for s, f in folders.items()
            },
            calibration=pq.read_table(calibration) if calibration.is_file() else None,
            rankings=_read_rankings(base),
            key=key,
            facts={
                **own,
                "seconds": sum(part["seconds"] for part in (own, *parts)),
                **{
                    name: max(part[name] for part in (own, *parts))
                    for name in ("peak_rss_gib", "batch_parts")
                },
            },
        )

    def _observe(self, pipeline: Pipeline, guard: Guard, split: str, folder: Path) -> None:
        asked = self._asked_clean(pipeline)[split]
        pq.write_table(_answered(guard, asked, split), folder / "clean.parquet")
        for i, corpus in enumerate(self._asked_triggered(pipeline)[split]):
            pq.write_table(_answered(guard, corpus, split), folder / f"triggered-{i}.parquet")

    def _calibrate(self, pipeline: Pipeline, guard: Guard, folder: Path) -> None:
        if not pipeline.calibrates:
            return
        screening = next(d for d in pipeline.defenses if d.calibrates)
        clean = self._clean_rows(pipeline, screening, self.task_data(pipeline))
        table = _answered(guard, _unlabelled(clean), "clean")
        pq.write_table(table, folder / "calibration.parquet")


def split_key(observed_key: str, split: str) -> str:
    """The key of a guard's observations of one split; under `observed_key` is what belongs to no split."""
    return digest(observed_key, split)


def _named(pipeline: Pipeline, index: int, view: View) -> dict[str, pa.Table]:
    """What a defense has ranked, by its name; a second step of the same name in a chain has its place too."""
    names = [spec.name for spec in pipeline.spec.defenses]
    again = names[:index].count(names[index])
    name = names[index] + (f"#{again + 1}" if again else "")
    return {f"{name}/{ranking}": table for ranking, table in view.rankings.items()}


def _write_rankings(folder: Path, rankings: Mapping[str, pa.Table]) -> None:
    for name, table in rankings.items():
        path = folder / "rankings" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def _read_rankings(folder: Path) -> dict[str, pa.Table]:
    rankings = folder / "rankings"
    return {
        path.relative_to(rankings).with_suffix("").as_posix(): pq.read_table(path)
        for path in sorted(rankings.rglob("*.parquet"))
    }


def _more_often(ids: np.ndarray, than: np.ndarray) -> np.ndarray:
    """The ids that stand in `ids` more often than in `than`, sorted."""
    found, counts = np.unique(ids, return_counts=True)
    before = dict(zip(*np.unique(than, return_counts=True), strict=True))
    more = [count > before.get(i, 0) for i, count in zip(found, counts, strict=True)]
    return np.asarray(found[np.array(more, bool)])


def _answered(guard: Guard, corpus: Corpus, split: str) -> pa.Table:
    """One row an answer: a guard that loses or adds rows is refused."""
    table = guard.observe(corpus, split)
    if table.num_rows != len(corpus):
        raise SweepError(
            f"{type(guard).__name__}.observe answered {table.num_rows} rows for {len(corpus)} texts"
        )
    return table


def _unlabelled(corpus: Corpus) -> Corpus:
    """The same rows without their labels: what a guard is asked about."""
    labels = pa.array(np.full(len(corpus), -1, np.int64))
    index = corpus.table.schema.get_field_index("label")
    return Corpus(corpus.table.set_column(index, "label", labels))
