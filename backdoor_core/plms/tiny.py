"""The embedded PLM: a two-layer BERT whose tokenizer and weights are made here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_core.corpus import Corpus, Row
from backdoor_core.grammar import plain_texts
from backdoor_core.plm import PLMSource, seeded
from backdoor_core.space import setting
from backdoor_core.spec import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 128


class Tiny(PLMSource):
    """A BERT of 2 layers and 128 dimensions, pre-trained as a masked language model on generated text.

    The text is synthetic (the grammar of the task `toy_reviews`): good enough to make "clean pre-trained weights"
    true, and nothing else. Seeded; made once and kept in the store.
    """

    preferred_precision: ClassVar[str] = "float32"
    guess_rows_per_s: ClassVar[float] = 1000.0
    guess_mib: ClassVar[float] = 3.0
    guess_prepare_s: ClassVar[float] = 45.0

    texts: int = setting(16000, ge=100, description="generated texts")
    epochs: int = setting(4, ge=1, description="passes over them")
    learning_rate: float = setting(1e-3, gt=0, description="peak learning rate")
    layers: int = setting(2, ge=1, description="encoder layers")
    hidden: int = setting(128, ge=8, multiple_of=4, description="dimensions")
    seed: int = setting(0, ge=0, description="seed of texts and weights")

    def materialise(self, folder: Path) -> dict[str, Any]:
        """Generates text, makes the tokenizer, trains the model."""
        from transformers import BertConfig, BertForMaskedLM

        from backdoor_core.text import encode
        from backdoor_core.training import masked_language_model, train

        texts = plain_texts(self.seed, self.texts)
        tokenizer = _tokenizer(texts)
        seeded(self.seed, "tiny")
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=4,
                intermediate_size=2 * self.hidden,
                max_position_embeddings=MAX_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        encoded = encode(tokenizer, Corpus.of(Row(text=text) for text in texts), MAX_TOKENS)
        loss = masked_language_model(encoded, tokenizer, seed=self.seed)
        settings = TrainingSettings(
            epochs=self.epochs, batch_rows=64, learning_rate=self.learning_rate
        )
        steps = train(model, encoded, loss, settings, self.seed)
        model.cpu().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {"texts": len(texts), "steps": steps, "vocabulary": len(tokenizer)}


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer whose vocabulary is every word of the texts, and all single characters.

    Made by counting, not by a trainer: the same texts give the same ids everywhere.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(piece for piece, _ in pieces)
    characters = sorted(
        {c for word in counts for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    words = sorted(counts, key=lambda word: (-counts[word], word))
    listed = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters), *words]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
