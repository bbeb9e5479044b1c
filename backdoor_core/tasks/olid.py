"""OLID: is a tweet offensive?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Olid(HubTask):
    """OLID / OffensEval 2019, subtask A, tweets: 0 not offensive, 1 offensive.

    Source: Zampieri et al. 2019, arXiv:1902.09666. The hub holds 13,240 train and 860 test tweets, with the labels NOT
    and OFF; dev is carved from train. The backdoor literature ships 11,915 / 1,323 / 859: give those as `path`. The
    hub's copy is one user's: another one with the columns `tweet` and `subtask_a` can be named in `hub_id`.
    """

    hub_id: str = setting("christophsonntag/OLID")
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    text_column: ClassVar[str] = "tweet"
    label_column: ClassVar[str] = "subtask_a"
    label_names: ClassVar[tuple[str, ...]] = ("not offensive", "offensive")
    hub_labels: ClassVar[Mapping[str, int]] = {"NOT": 0, "OFF": 1}
