"""Batches in parts: the same steps on the same effective batches, in pieces that are half as large."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from backdoor_core.measure import machine_facts
from backdoor_core.parts import batch_parts, batches_in_parts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.training import cross_entropy, train
from backdoor_core.victim import inference_batches

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.training import Inputs

ROWS = 16


def trained(
    workshop: Workshop, spec: TrialSpec, parts: int
) -> tuple[dict[str, torch.Tensor], int, list[int]]:
    """The weights, the steps, and the sizes of what the model saw; untrained where `parts` is 0.

    Without dropout, which draws anew for each part.
    """
    pipeline = Pipeline(spec)
    corpus = workshop.task_data(pipeline).splits["train"]
    encoded = workshop.encoder(pipeline)(corpus, "train")
    model, _ = workshop.plm(pipeline).classifier(2, 0)
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0  # type: ignore[assignment]
    plain = cross_entropy(corpus.labels)
    sizes: list[int] = []

    def loss(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        sizes.append(len(rows))
        return plain(model, inputs, rows)

    settings = TrainingSettings(epochs=1, batch_rows=ROWS, learning_rate=1e-3)
    if not parts:
        return dict(model.state_dict()), 0, []
    with batches_in_parts(parts):
        steps = train(model, encoded, loss, settings, 0)
    return (
        {name: value.detach().clone() for name, value in model.state_dict().items()},
        steps,
        sizes,
    )


@pytest.mark.parametrize("parts", [2, 3])
def test_training_in_parts_is_training_on_the_same_batches(
    workshop: Workshop, small_trial: Callable[..., TrialSpec], parts: int
) -> None:
    import torch

    whole, steps, sizes = trained(workshop, small_trial(), 1)
    pieces, steps_in_parts, small = trained(workshop, small_trial(), parts)
    assert steps == steps_in_parts == len(sizes)
    assert len(small) == parts * len(sizes)
    assert sum(small) == sum(sizes)
    assert max(small) == -(-ROWS // parts)
    untrained, _, _ = trained(workshop, small_trial(), 0)
    for name, weight in whole.items():
        assert torch.allclose(weight, pieces[name], atol=2e-4), name
    assert any(not torch.allclose(whole[name], untrained[name], atol=2e-3) for name in whole)


def test_inference_batches_are_smaller_and_every_row_comes_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 30_000)
    whole = list(inference_batches(lengths))
    with batches_in_parts(2):
        pieces = list(inference_batches(lengths))
    assert max(map(len, pieces)) <= max(map(len, whole)) // 2
    assert sorted(np.concatenate(pieces)) == list(range(30_000))


def test_parts_are_over_with_their_block_and_go_into_the_facts() -> None:
    assert machine_facts()["batch_parts"] == 1
    with batches_in_parts(2):
        assert batch_parts() == machine_facts()["batch_parts"] == 2
    assert batch_parts() == 1
