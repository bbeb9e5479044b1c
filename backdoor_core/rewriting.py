"""Texts rewritten by a sequence-to-sequence model, the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backdoor_core.errors import ConfigError
from backdoor_core.plm import check_folder, load_tokenizer, opened
from backdoor_core.victim import compute_device, inference_batches, on_device


def rewritten(texts: Sequence[str], folder: Path, *, max_tokens: int, beams: int) -> list[str]:
    """What the model in `folder` makes of each of `texts`, by beam search, without any drawing.

    It reads and writes at most `max_tokens` tokens a text. Raises ConfigError for a folder without safetensors
    weights, a model that is no whole sequence-to-sequence model, and more tokens than it has positions for.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    check_folder(folder)
    model, facts = opened(
        AutoModelForSeq2SeqLM,
        folder,
        output_loading_info=True,
    )
    if facts["missing_keys"]:
        raise ConfigError(
            f"the model in {folder} lacks {', '.join(sorted(facts['missing_keys'])[:3])}; expected "
            "a whole sequence-to-sequence model"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"the tokenizer in {folder} has no padding token; name one in its files")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_tokens >= positions:
        raise ConfigError(
            f"max_tokens {max_tokens} is too much for the model in {folder}, which has {positions} "
            "positions; lower it"
        )
    device = compute_device()
    on_device(model, device).train(False)
    result = [""] * len(texts)
    if not texts:
        return result
    ids = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    with torch.inference_mode():
        for rows in inference_batches(np.array([len(row) for row in ids])):
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            written = model.generate(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                do_sample=False,
                num_beams=beams,
                num_return_sequences=1,
                max_new_tokens=max_tokens,
            )
            for row, text in zip(
                rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
            ):
                result[row] = text.strip()
    return result
