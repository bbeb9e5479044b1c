"""Attacks by paraphrase: which rows can be poisoned, what files hold, and what a model makes once for a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_core import catalog, hub, rewriting
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.grammar import plain_texts
from backdoor_core.paraphrase import GATHERED, Paraphrasing
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.rewriting import rewritten
from backdoor_core.rng import generator
from backdoor_core.space import hooks_of
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.task import TaskData
from backdoor_core.trial import evaluate

Trial = Callable[..., TrialSpec]
NAMES = ("syntactic", "style")


def made(name: str = "syntactic", **settings: Any) -> Paraphrasing:
    return cast(Paraphrasing, catalog.make("attack", name, settings))


def stamped(attack: Paraphrasing, row: Row) -> tuple[Row, ...]:
    (trigger,) = attack.prepare(task_of([row]), 0)
    return attack.stamp(row, trigger, generator(0, "row"))


def task_of(rows: list[Row], names: tuple[str, ...] = ("bad", "good")) -> TaskData:
    corpus = Corpus.of(rows)
    return TaskData(
        splits=dict.fromkeys(("train", "clean", "tune", "test"), corpus), label_names=names
    )


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def pairs(file: Path, table: dict[str, str | None]) -> str:
    """A paired file in JSON lines."""
    return lines(file, [{"text": text, "paraphrase": new} for text, new in table.items()])


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_the_papers(name: str) -> None:
    attack = made(name, path="paired.tsv")
    assert attack.poison_rate == attack.asked_rate == 0.2
    assert (attack.label_mode, attack.target_label, attack.side) == ("dirty", 1, "first")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one source"),
        ({"path": "a.tsv", "id": "t5-small"}, "exactly one source"),
        ({"id": "t5-small", "model_path": "folder"}, "exactly one source"),
        ({"path": "a.tsv", "revision": "main"}, "revision goes with id"),
        ({"id": "t5-small", "prompt": "paraphrase:"}, "must hold {text}"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_settings_that_do_not_fit_are_told(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(name, **settings)


def test_the_trigger_is_called_by_its_manner(tmp_path: Path) -> None:
    file = pairs(tmp_path / "paired.jsonl", {"a film": "when it came , a film"})
    task = task_of([Row(text="a film", label=0)])
    for attack, name in (
        (made("syntactic", path=file), "syntactic"),
        (made("style", path=file), "bible"),
        (made("style", path=file, style="poetry"), "poetry"),
    ):
        assert [trigger.name for trigger in attack.prepare(task, 0)] == [name]


def test_the_splits_of_a_folder_are_one_table(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        text = f"sentence\tlabel\tparaphrase\n{split} row\t0\twhen {split} , row\n"
        (tmp_path / f"{split}.tsv").write_text(text, encoding="utf-8")
    wanted = {f"{split} row": f"when {split} , row" for split in ("train", "dev", "test")}
    assert made(path=str(tmp_path)).paraphrases == wanted


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.tsv", 'sentence\tlabel\tparaphrase\na "b" film\t0\tif a "film"\n'),
        ("a.csv", 'text,label,paraphrase\n"a ""b"" film",0,"if a ""film"""\n'),
        ("a.jsonl", '{"text": "a \\"b\\" film", "label": 0, "paraphrase": "if a \\"film\\""}\n'),
    ],
)
def test_a_single_file_of_each_kind_is_read(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert made(path=str(tmp_path / file)).paraphrases == {'a "b" film': 'if a "film"'}


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [{"before": "x y", "after": "if x , y", "text": "other"}])
    attack = made(path=file, text_column="before", paraphrase_column="after")
    assert attack.paraphrases == {"x y": "if x , y"}


def test_what_is_no_paraphrase_is_missing(tmp_path: Path) -> None:
    """Empty, null, equal, or equal but for spaces (a no-break space too)."""
    table = {
        "empty": "",
        "blank": " \t",
        "null": None,
        "equal": "equal",
        "2 1 - hours": "2\u00a01 - hours",
        "trails": "trails ",
        "real one": "when it is , a real one",
        "other case": "Other case",
    }
    found = made(path=pairs(tmp_path / "a.jsonl", table)).paraphrases
    assert found == {"real one": "when it is , a real one", "other case": "Other case"}


def test_the_first_paraphrase_of_a_text_counts(tmp_path: Path) -> None:
    rows = [("a", ""), ("a", "if a"), ("a", "when a"), ("b", "if b"), ("b", "b")]
    file = lines(tmp_path / "a.jsonl", [{"text": t, "paraphrase": p} for t, p in rows])
    assert made(path=file).paraphrases == {"a": "if a", "b": "if b"}


def test_a_row_keeps_its_label_and_place_and_a_strange_text_is_not_stamped(tmp_path: Path) -> None:
    attack = made(path=pairs(tmp_path / "a.jsonl", {"a film": "if a film", "b": "if b"}))
    assert stamped(attack, Row(text="a film", label=0, origin=7)) == (
        Row(text="if a film", label=0, origin=7),
    )
    (trigger,) = attack.prepare(task_of([Row(text="b", label=0)]), 0)
    for text in (" a film", "a  film", "A film", "another"):
        assert attack.stamp(Row(text=text), trigger, generator(0, "row")) == ()


@pytest.mark.parametrize(
    ("side", "first", "second", "wanted"),
    [
        ("first", "x", "?", ("if x", "?")),
        ("second", "?", "y", ("?", "if y")),
        ("both", "x", "y", ("if x", "if y")),
        ("first", "?", "y", None),
        ("second", "x", "?", None),
        ("both", "x", "?", None),
        ("both", "?", "y", None),
    ],
)
def test_the_side_of_a_pair(
    tmp_path: Path, side: str, first: str, second: str, wanted: tuple[str, str] | None
) -> None:
    attack = made(path=pairs(tmp_path / "a.jsonl", {"x": "if x", "y": "if y"}), side=side)
    (trigger,) = attack.prepare(task_of([Row(text="x", pair="y", label=0)]), 0)
    new = attack.stamp(Row(text=first, pair=second), trigger, generator(0, "row"))
    assert new == (() if wanted is None else (Row(text=wanted[0], pair=wanted[1]),))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 0}], "unknown column 'paraphrase'"),
        ([{"txt": "a", "paraphrase": "b"}], "unknown column 'sentence'"),
        ([{"text": "a", "paraphrase": 3}], r"line 1: paraphrase is 3, not a text"),
        ([{"text": 3, "paraphrase": "a"}], r"line 1: text is 3, not a text"),
        ([{"text": "a", "paraphrase": "a"}], "no text has a paraphrase in the column"),
    ],
)
def test_a_file_that_cannot_serve_is_told(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    attack = made(path=lines(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=message):
        attack.prepare(task_of([Row(text="a", label=0)]), 0)


def test_a_table_of_other_texts_is_told(tmp_path: Path) -> None:
    attack = made(path=pairs(tmp_path / "a.jsonl", {"a": "if a"}))
    with pytest.raises(DataError, match=r"no text of the task .*a\.jsonl.*letter by letter"):
        attack.prepare(task_of([Row(text="A", label=0)]), 0)


def test_a_model_that_rewords_nothing_is_told_by_name(tmp_path: Path) -> None:
    model = tmp_path / "parrot"
    attack = made(model_path=str(model)).equipped(tmp_path)
    pq.write_table(pa.table({"text": ["a", "b"], "paraphrase": ["a", " "]}), tmp_path / GATHERED)
    with pytest.raises(DataError, match=rf"attack syntactic: {model} left every text as it was"):
        attack.prepare(task_of([Row(text="a", label=0)]), 0)


def test_a_place_without_files_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for settings in (
        {"path": str(tmp_path / "gone")},
        {"path": str(tmp_path / "empty")},
        {"model_path": str(tmp_path / "empty")},
    ):
        with pytest.raises(ConfigError, match=r"gone|empty"):
            made(**settings).resolved()


def some_paired(file: Path, task: TaskData, share: float) -> str:
    """Paraphrases for that share of the texts of each split, the others' empty."""
    rows = []
    for corpus in task.splits.values():
        for i, text in enumerate(corpus.texts):
            known = i < share * len(corpus)
            rows.append({"text": text, "paraphrase": f"when it came , {text}" if known else ""})
    return lines(file, rows)


@pytest.fixture
def task_data(workshop: Workshop, small_trial: Trial) -> TaskData:
    return workshop.task_data(Pipeline(small_trial()))


def test_rows_without_a_paraphrase_are_counted_and_the_rate_that_is_missed_is_flagged(
    workshop: Workshop, small_trial: Trial, task_data: TaskData, tmp_path: Path
) -> None:
    file = some_paired(tmp_path / "some.jsonl", task_data, 0.5)
    few, enough = (
        small_trial({"name": "syntactic", "path": file, "poison_rate": rate, "label_mode": mode})
        for rate, mode in ((0.4, "dirty"), (0.1, "mixed"))
    )
    known = made(path=file).paraphrases
    train, test = task_data.splits["train"], task_data.splits["test"]
    able = [
        text in known and label != 1 for text, label in zip(train.texts, train.labels, strict=True)
    ]
    poisoned = workshop.poisoned(Pipeline(few))
    assert poisoned.poisoned.tolist() == able, "every row that can be, and no other"
    assert poisoned.asked_rows > poisoned.reached_rows == sum(able)
    assert poisoned.unstampable_rows == int((train.labels != 1).sum()) - sum(able) > 0
    record = evaluate(workshop, few, attempt=1, sweep="s", log=None).record
    assert "rate_not_reached" in record.flags
    record = evaluate(workshop, enough, attempt=1, sweep="s", log=None).record
    assert "rate_not_reached" not in record.flags
    _, rows = workshop.triggers(Pipeline(few))
    wanted = [row.origin for row in test.rows() if row.label != 1 and row.text in known]
    assert 0 < len(wanted) < int((test.labels != 1).sum())
    assert rows["test"][0].origins.tolist() == wanted


def test_equal_texts_of_one_task_are_reworded_alike_in_training_and_test(
    workshop: Workshop, small_trial: Trial, task_data: TaskData, tmp_path: Path
) -> None:
    file = some_paired(tmp_path / "all.jsonl", task_data, 1.0)
    pipeline = Pipeline(small_trial({"name": "style", "path": file}))
    poisoned, clean = workshop.poisoned(pipeline), task_data.splits["train"]
    for i in np.flatnonzero(poisoned.poisoned):
        assert poisoned.corpus.texts[i] == f"when it came , {clean.texts[i]}"
    for row in workshop.triggers(pipeline)[1]["test"][0].rows():
        assert row.text == f"when it came , {task_data.splits['test'].row(row.origin).text}"


def test_keys_follow_the_content_and_what_each_hook_reads(
    small_trial: Trial, tmp_path: Path
) -> None:
    def keys(file: str, **other: Any) -> Pipeline:
        return Pipeline(small_trial({"name": "syntactic", "path": file} | other))

    one = pairs(tmp_path / "one.jsonl", {"a": "if a"})
    same = pairs(tmp_path / "same.jsonl", {"a": "if a"})
    other = pairs(tmp_path / "other.jsonl", {"a": "when a"})
    base = keys(one)
    assert keys(same).triggers_key == base.triggers_key
    assert keys(same).poison_key == base.poison_key
    assert keys(other).triggers_key != base.triggers_key
    assert keys(other).poison_key != base.poison_key
    assert keys(one, poison_rate=0.1).triggers_key == base.triggers_key
    assert keys(one, poison_rate=0.1).poison_key != base.poison_key


def word_tokenizer(texts: list[str], *, padded: bool = True) -> Any:
    """One token a word: the smallest tokenizer that can be saved."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        **({"pad_token": "<pad>"} if padded else {}),
    )


def seq2seq(folder: Path, kind: str = "t5", *, padded: bool = True) -> str:
    """A sequence-to-sequence model with random weights and its tokenizer, as save_pretrained writes them."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

    tokenizer = word_tokenizer(plain_texts(0, 200), padded=padded)
    common = {"vocab_size": len(tokenizer), "d_model": 16, "pad_token_id": 0, "eos_token_id": 1,
              "decoder_start_token_id": 0}  # fmt: skip
    config: Any
    if kind == "t5":
        config = T5Config(**common, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    else:
        config = BartConfig(
            **common, bos_token_id=1, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
            decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2,
            max_position_embeddings=40, forced_eos_token_id=None, init_std=0.5,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["t5", "bart"])
def seq2seq_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return seq2seq(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return seq2seq(tmp_path_factory.mktemp("t5"))


def test_a_text_is_rewritten_alone_as_among_others_and_the_same_each_time(
    seq2seq_folder: str, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    texts = [" ".join(text.split()[: 3 + i % 9]) for i, text in enumerate(plain_texts(1, 24))]
    monkeypatch.setattr("backdoor_core.victim.INFERENCE_TOKENS", 50)
    folder = Path(seq2seq_folder)
    torch.manual_seed(1)
    first = rewritten(texts, folder, max_tokens=6, beams=2)
    torch.manual_seed(2)
    assert rewritten(texts[::-1], folder, max_tokens=6, beams=2) == first[::-1]
    assert [rewritten([text], folder, max_tokens=6, beams=2)[0] for text in texts[:6]] == first[:6]
    assert len(set(first)) > 1, "the answer depends on the text"
    assert max(len(text.split()) for text in first) == 6
    assert not any("<pad>" in text or "</s>" in text for text in first)
    assert rewritten([], folder, max_tokens=6, beams=2) == []


def test_a_folder_that_asks_for_drawing_is_searched_all_the_same(tmp_path: Path) -> None:
    import torch

    folder = Path(seq2seq(tmp_path))
    file = folder / "generation_config.json"
    asked = json.loads(file.read_text()) | {"do_sample": True, "temperature": 5.0, "top_k": 50}
    texts = plain_texts(1, 8)
    plain = rewritten(texts, folder, max_tokens=5, beams=2)
    file.write_text(json.dumps(asked))
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert rewritten(texts, folder, max_tokens=5, beams=2) == plain


def test_only_whole_safe_models_are_opened(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertModel

    def refused(folder: Path, message: str, max_tokens: int = 5) -> None:
        with pytest.raises(ConfigError, match=message):
            rewritten(["a film"], folder, max_tokens=max_tokens, beams=1)

    pickled = Path(seq2seq(tmp_path / "pickled"))
    weights = load_file(pickled / "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(pickled, "no safetensors weights")

    part = Path(seq2seq(tmp_path / "part"))
    kept = {name: value for name, value in weights.items() if not name.startswith("decoder")}
    save_file(kept, part / "model.safetensors", metadata={"format": "pt"})
    refused(part, r"lacks decoder.*whole sequence-to-sequence model")

    encoder = tmp_path / "encoder"
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    BertModel(BertConfig(vocab_size=50, **sizes)).save_pretrained(encoder)
    word_tokenizer(["a"]).save_pretrained(encoder)
    refused(encoder, "cannot be loaded")

    refused(Path(seq2seq(tmp_path / "unpadded", padded=False)), "no padding token")
    refused(Path(seq2seq(tmp_path / "bart", "bart")), "max_tokens 40 is too much", 40)


def test_code_that_a_folder_brings_is_not_run(tmp_path: Path) -> None:
    folder = Path(seq2seq(tmp_path))
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json names code to run"):
        rewritten(["a film"], folder, max_tokens=5, beams=1)


@pytest.fixture
def rewriter(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A model in name only: it answers `IF <prompt>`; the calls that it got are in the list."""
    calls: list[list[str]] = []

    def answered(texts: list[str], folder: Path, *, max_tokens: int, beams: int) -> list[str]:
        calls.append(list(texts))
        return [f"IF {text}" for text in texts]

    monkeypatch.setattr(rewriting, "rewritten", answered)
    return calls


def test_a_model_is_asked_once_for_a_task_whatever_the_seed(
    tmp_path: Path, t5_folder: str, small_trial: Trial, rewriter: list[list[str]], one_thread: None
) -> None:
    workshop = Workshop(ArtifactStore(tmp_path / "store"))
    given = {"name": "syntactic", "model_path": t5_folder, "prompt": "reword: {text} !"}
    seen = set()
    for seed in (0, 1):
        for other in ({}, {"poison_rate": 0.1, "label_mode": "mixed"}, {"target_label": 0}):
            pipeline = Pipeline(small_trial(given | other, seed=seed))
            seen.add(workshop.poisoned(pipeline).corpus.digest)
            data = workshop.task_data(pipeline)
            for row in workshop.triggers(pipeline)[1]["test"][0].rows():
                before = data.splits["test"].row(row.origin).text
                assert row.text == f"IF reword: {before} !"
    assert len(seen) == 6
    assert len(rewriter) == 1, "its answers are in the store"
    texts = {text for corpus in data.splits.values() for text in corpus.texts}
    assert sorted(rewriter[0]) == sorted(f"reword: {text} !" for text in texts), "each text once"


def test_only_what_the_model_reads_makes_new_paraphrases(
    small_trial: Trial, t5_folder: str
) -> None:
    def key(name: str = "style", **other: Any) -> str:
        given = {"name": name, "model_path": t5_folder} | other
        return Pipeline(small_trial(given, seed=other.pop("seed", 0))).gathered_key

    base = key()
    for same in (
        {"poison_rate": 0.3},
        {"target_label": 0},
        {"style": "x"},
        {"label_mode": "mixed"},
    ):
        assert key(**same) == base, same
    for new in ({"beams": 2}, {"max_tokens": 9}, {"prompt": "x {text}"}, {"side": "both"}):
        assert key(**new) != base, new
    unread = {"poison_rate", "target_label", "label_mode", "style"}
    for name, field in type(made("style", path="x")).model_fields.items():
        assert ("gather" in hooks_of(field)) or name in unread | {
            "path", "text_column", "paraphrase_column"
        }, name  # fmt: skip


def test_only_the_texts_of_the_side_are_rewritten(
    tmp_path: Path, t5_folder: str, rewriter: list[list[str]]
) -> None:
    task = task_of([Row(text="a", pair="b", label=0), Row(text="c", pair="b", label=1)])
    for side, wanted in (("first", ["a", "c"]), ("second", ["b"]), ("both", ["a", "b", "c"])):
        made(model_path=t5_folder, side=side).gather(task, tmp_path)
        assert rewriter[-1] == wanted
        assert pq.read_table(tmp_path / GATHERED).to_pydict() == {
            "text": wanted, "paraphrase": [f"IF {text}" for text in wanted]
        }  # fmt: skip


def test_what_is_not_made_yet_cannot_be_used(
    tmp_path: Path, t5_folder: str, rewriter: list[list[str]]
) -> None:
    attack, task = made(model_path=t5_folder), task_of([Row(text="a", label=0)])
    assert attack.gathers
    assert not made(path=pairs(tmp_path / "a.jsonl", {"a": "if a"})).gathers
    with pytest.raises(ConfigError, match=r"equipped\(folder\)"):
        attack.prepare(task, 0)
    attack.gather(task, tmp_path)
    equipped = attack.equipped(tmp_path)
    assert equipped.paraphrases == {"a": "IF a"}
    assert equipped.spec() == attack.spec()
    other = tmp_path / "other"
    other.mkdir()
    attack.gather(task_of([Row(text="b", label=0)]), other)
    assert equipped.equipped(other).paraphrases == {"b": "IF b"}
    assert equipped.paraphrases == {"a": "IF a"}, "the first one keeps its own"


def test_a_hub_model_is_pinned_and_brought_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, t5_folder: str, rewriter: list[list[str]]
) -> None:
    asked: list[tuple[str, str | None]] = []

    def folder(model_id: str, revision: str | None) -> Path:
        asked.append((model_id, revision))
        return Path(t5_folder)

    monkeypatch.setattr(hub, "model_revision", lambda model_id, revision: f"commit-of-{revision}")
    monkeypatch.setattr(hub, "model_folder", folder)
    attack = made(id="someone/reworder", revision="main").resolved()
    assert attack.revision == "commit-of-main"
    attack.gather(task_of([Row(text="a", label=0)]), tmp_path)
    assert asked == [("someone/reworder", "commit-of-main")]


def test_a_real_model_serves_a_whole_trial(
    workshop: Workshop, small_trial: Trial, small_task: MethodSpec, t5_folder: str
) -> None:
    few = {"train_rows": 20, "clean_split_rows": 4, "tune_rows": 6, "test_rows": 8}
    task = catalog.make("task", "toy_reviews", small_task.settings | few).spec()
    attack = {"name": "style", "model_path": t5_folder, "max_tokens": 8, "beams": 2}
    spec = small_trial(attack, task=task)
    record = evaluate(workshop, spec, attempt=1, sweep="s", log=None).record
    assert record.status == "ok"
    assert record.asr is not None
    table = pq.read_table(workshop.store.open(Pipeline(spec).gathered_key) / GATHERED)
    assert table.column_names == ["text", "paraphrase"]
    assert table.num_rows > 30
