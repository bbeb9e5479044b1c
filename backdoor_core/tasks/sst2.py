"""SST-2: is a sentence from a film review positive or negative?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Sst2(HubTask):
    """SST-2, film review sentences: 0 negative, 1 positive.

    Source: Socher et al. 2013, https://aclanthology.org/D13-1170, in the form of GLUE (arXiv:1804.07461). The hub's
    test labels are hidden, so its 872 validation rows are the test split and dev is carved from its 67,349 train
    rows, most of which are phrases. The backdoor literature uses the 6,920 / 872 / 1,821 whole sentences instead:
    give those as `path`.
    """

    hub_id: str = setting("stanfordnlp/sst2")
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "validation"}
    text_column: ClassVar[str] = "sentence"
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
