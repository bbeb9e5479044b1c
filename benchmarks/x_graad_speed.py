"""How fast X-GRAAD scores a batch, against a plain forward and backward pass of the same batch.

A BERT of MiniLM's shape (6 layers, 384 dimensions, 12 heads; random weights serve) on batches of 32 rows of
`--tokens` tokens. Plain: fused attention, cross-entropy, gradients of all parameters. X-GRAAD: attention of every
layer, the gradient of the predicted logit with respect to the word embeddings, and the token scores. Both in float32
and in bf16 autocast, in turn; the ratio is the median over the rounds of the plain pass's seconds over X-GRAAD's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks._line import finish, options, say

WANTED = ">= 0.4"
ROWS = 32
ROUNDS = 12


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=48, help="tokens in each row")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    chosen = parser.parse_args()
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from backdoor_core.salience import attentive, batch_salience
    from backdoor_core.victim import autocast, compute_device, on_device

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    device = compute_device()
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536,
    )  # fmt: skip
    plain = on_device(BertForSequenceClassification(config), device)
    scored = attentive(plain)
    scored.requires_grad_(False)
    ids = torch.randint(1000, 30000, (ROWS, chosen.tokens), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(0, 2, (ROWS,), device=device)
    held = []
    for precision in ("float32", "bf16"):

        def pass_plain(precision: str = precision) -> None:
            plain.train(False)
            with autocast(device, precision):  # type: ignore[arg-type]
                logits = plain(**inputs).logits
                loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            plain.zero_grad(set_to_none=True)

        def pass_scored(precision: str = precision) -> None:
            batch_salience(scored, inputs, labels, precision)  # type: ignore[arg-type]

        times = _in_turn(pass_plain, pass_scored)
        ratio = float(np.median(times[0]) / np.median(times[1]))
        held.append(
            say(
                f"x_graad_speed {precision}",
                ratio,
                WANTED,
                settings={
                    "rows": ROWS,
                    "tokens": chosen.tokens,
                    "rounds": ROUNDS,
                    "threads": chosen.threads,
                    "device": device.type,
                },
                measured={
                    "plain_ms": round(1e3 * float(np.median(times[0])), 1),
                    "x_graad_ms": round(1e3 * float(np.median(times[1])), 1),
                },
            )
        )
    finish(chosen.strict, *held)


def _in_turn(*passes: Callable[[], None]) -> list[list[float]]:
    """Seconds of each pass in each round; all warmed up first."""
    import torch

    def timed(one: Callable[[], None]) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        one()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for one in (*passes, *passes):
        timed(one)
    times: list[list[float]] = [[] for _ in passes]
    for _ in range(ROUNDS):
        for one, found in zip(passes, times, strict=True):
            found.append(timed(one))
    return times


if __name__ == "__main__":
    main()
