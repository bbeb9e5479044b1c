"""IMDB: is a whole film review positive or negative?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from backdoor_core.hub_task import HubTask
from backdoor_core.space import setting


class Imdb(HubTask):
    """IMDB, whole film reviews (a few hundred tokens each): 0 negative, 1 positive.

    Source: Maas et al. 2011, https://aclanthology.org/P11-1015. 25,000 train and 25,000 test rows; dev is carved from
    train, the unlabelled rows are not read. Some reviews stand in both splits: those leave train.
    """

    hub_id: str = setting("stanfordnlp/imdb")
    hub_splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    text_column: ClassVar[str] = "text"
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
