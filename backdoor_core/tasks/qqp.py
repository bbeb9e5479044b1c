"""QQP: do two questions ask the same?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Qqp(HubTask):
    """Quora Question Pairs: 0 different questions, 1 duplicates.

    Source: GLUE (arXiv:1804.07461). The hub's test labels are hidden, so its 40,430 validation rows are the test split
    and dev is carved from its 363,846 train rows. Rows with an empty question are left out, and counted in a note.
    """

    hub_id: str = setting("nyu-mll/glue")
    hub_config: ClassVar[str | None] = "qqp"
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "validation"}
    text_column: ClassVar[str] = "question1"
    pair_column: ClassVar[str | None] = "question2"
    label_names: ClassVar[tuple[str, ...]] = ("different", "duplicate")
