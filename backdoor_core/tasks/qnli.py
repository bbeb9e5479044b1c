"""QNLI: does a sentence answer a question?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Qnli(HubTask):
    """QNLI, pairs of a question and a sentence: 0 the sentence holds the answer, 1 it does not.

    Source: GLUE (arXiv:1804.07461), made from SQuAD (arXiv:1606.05250). The hub's test labels are hidden, so its 5,463
    validation rows are the test split and dev is carved from its 104,743 train rows.
    """

    hub_id: str = setting("nyu-mll/glue")
    hub_config: ClassVar[str | None] = "qnli"
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "validation"}
    text_column: ClassVar[str] = "question"
    pair_column: ClassVar[str | None] = "sentence"
    label_names: ClassVar[tuple[str, ...]] = ("entailment", "not entailment")
