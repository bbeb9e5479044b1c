"""The report: whole, escaped, without a network, and honest about what it cannot say."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import analysis
from analysis.answers import answer
from analysis.facts import PROTOCOL, failures, failures_lead, lead, reproduce, standing
from analysis.grouping import replaced_keys
from analysis.report import write_report, write_tradeoff_svg
from analysis.summaries import summaries
from analysis.worst import worst_cases
from backdoor_core.errors import DataError, StorageError

SETUP = ("sst2", "bert")


class Page(HTMLParser):
    """Collects the tags with their attributes, the visible text and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page(sweep_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = write_report(sweep_out, tmp_path_factory.mktemp("report"))
    return Page(path.read_text(encoding="utf-8"))


def _page(out: Path) -> Page:
    return Page(write_report(out).read_text(encoding="utf-8"))


def _answer(out: Path, setup: tuple[str, str] = SETUP) -> str:
    found = summaries(analysis.load(out))
    return " ".join(answer(found, worst_cases(found), setup))


def test_three_files_are_written_beside_each_other(sweep_out: Path, tmp_path: Path) -> None:
    path = write_report(sweep_out, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["report.html", "summary.csv", "summary.md"]


def test_nothing_would_be_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "connect-src" not in policy


def test_plotly_stands_there_once(page: Page) -> None:
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    drawn = [script for script in page.scripts if "Plotly.newPlot(" in script[:2000]]
    assert len(drawn) >= 5


def test_all_sections_are_there(page: Page) -> None:
    for text in (
        "Backdoor defenses: made-up",
        "168 trials (165 ok, 2 failed, 1 skipped)",
        "Clean accuracy against attack success",
        "Worst case over attacks",
        "fine_mixing over mixing_ratio",
        "badnets over the poison rate",
        "out of memory",
        "logs/job-1.txt",
        "x_graad needs a victim with attention",
        "ASRD of the undefended victim is below 0.5",
        "torch 2.13.0",
        "0, 1, 2",
    ):
        assert text in page.words, text


def test_the_answer_names_the_best_within_each_cost(sweep_out: Path) -> None:
    text = _answer(sweep_out)
    assert "Without a defense the worst-case ASR is 0.980." in text
    assert "at most 0.02 in every cell, onion has the lowest worst-case ASR" in text
    assert "at most 0.05 in every cell, epur+fine_mixing has the lowest" in text
    assert "down to 0.1; the least is 0.162, by epur+fine_mixing" in text
    assert "means of at least 3 seeds" in text
    assert "In 2 of 6 attack cells the attack did not take" in text
    assert "cells are missing: x_graad" in text


def test_one_seed_is_no_ranking(tmp_path: Path, record, write) -> None:
    rows = [record(), record(defense="onion", asr=0.2, cacc_drop=0.01)]
    out = write(tmp_path, rows)
    assert "one seed only: this is one draw, and no ranking" in _answer(out)
    assert "the one defense setting that ran" in _answer(out)
    assert "no ranking" in _page(out).words


def test_a_defense_that_buys_nothing_is_told(tmp_path: Path, record, write) -> None:
    out = write(tmp_path, [record(), record(defense="onion", asr=0.9)])
    assert "That is no lower than without a defense." in _answer(out)


def test_overlapping_intervals_settle_nothing(tmp_path: Path, record, write) -> None:
    rows = [record(defense="onion", asr=0.20), record(defense="cube", asr=0.21)]
    text = _answer(write(tmp_path, rows))
    assert "the next one, cube, overlaps it: their order is not settled" in text
    assert "undefended victim was not measured" in text


def test_nothing_within_the_cost_is_told(tmp_path: Path, record, write) -> None:
    out = write(tmp_path, [record(), record(defense="onion", asr=0.05, cacc_drop=0.3)])
    text = _answer(out)
    assert "keeps its largest CACC drop within 0.05; the least is 0.300, by onion" in text
    assert "the least CACC drop is 0.300, by onion" in text


def test_oracle_and_partial_settings_are_not_ranked(tmp_path: Path, record, write) -> None:
    rows = [
        record(),
        record(attack="style"),
        record(defense="onion", asr=0.0),
        *(
            record(defense="cube", attack=attack, asr=0.0, tuning_mode="oracle")
            for attack in ("badnets", "style")
        ),
    ]
    text = _answer(write(tmp_path, rows))
    assert "so none is named best" in text
    assert "cells are missing: onion" in text
    assert "tuned by looking at the attack: cube" in text


def test_only_the_twin(tmp_path: Path, record, write) -> None:
    twin = {"attack": "none", "attack_settings": {}, "poison_rate": None, "asr": None, "asrd": None}
    out = write(tmp_path, [record(**twin), record(**twin, defense="onion", cacc_drop=0.01)])
    page = _page(out)
    assert "no attack was run" in page.words
    assert "CACC drop" in page.words
    with pytest.raises(DataError, match="no trade-off"):
        write_tradeoff_svg(out, tmp_path / "x.svg")


def test_only_the_undefended(tmp_path: Path, record, write) -> None:
    assert "No defense has numbers here" in _page(write(tmp_path, [record()])).words


def test_every_trial_failed(tmp_path: Path, blank, write) -> None:
    rows = [blank("failed", seed=seed, error_class="bug", error="boom") for seed in (0, 1)]
    page = _page(write(tmp_path, rows))
    assert "no trial with an attack has numbers" in page.words
    assert "2 failed as bug" in page.words


def test_a_failure_that_a_rerun_mended_is_not_listed(tmp_path: Path, record, blank, write) -> None:
    """The rerun under other code has another key, so the failed row stays in the ledger."""
    rows = [
        blank("failed", key="a", error="out of luck", defense="onion", finished_at=1.0),
        blank("failed", key="b", error="out of memory", defense="cube", finished_at=1.0),
        record(defense="onion", finished_at=2.0),
    ]
    results = analysis.load(write(tmp_path, rows))
    left = standing(results.rows(), replaced_keys(results))
    assert [line[8] for line in failures(left)] == ["out of memory"]
    assert failures_lead(left).startswith("1 failed as unknown.")
    text = lead(results.rows(), summaries(results), replaced_keys(results))
    assert text.startswith("2 trials (1 ok, 1 failed, 0 skipped)")
    assert text.endswith(" 1 more failed or were skipped at first and have numbers since.")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "out of memory" in page
    assert "out of luck" not in page


def test_the_oracle_is_no_bound() -> None:
    """Its search is finite and on another split: another mode can be better on test."""
    (text,) = [text for title, text in PROTOCOL if title == "Tuning modes"]
    assert "bound" not in text
    assert "can beat it by luck" in text


def test_an_empty_ledger(tmp_path: Path, write) -> None:
    page = _page(write(tmp_path, []))
    assert "The ledger holds no trial yet." in page.words
    assert "No trial has finished yet" in page.words
    assert "No trial has finished yet" in (tmp_path / "summary.md").read_text()


def test_no_ledger_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a folder ledger/"):
        write_report(tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_several_tasks_and_plms_have_sections_of_their_own(tmp_path: Path, record, write) -> None:
    rows = [
        record(task=task, plm=plm, defense=defense, synthetic=task == "toy_reviews")
        for task in ("sst2", "toy_reviews")
        for plm in ("bert", "roberta")
        for defense in ("none", "onion")
    ]
    words = _page(write(tmp_path, rows)).words
    for title in ("sst2 with bert", "toy_reviews (synthetic) with roberta"):
        assert words.count(title) >= 2
    assert "this says nothing about real texts" in words


def test_whatever_a_user_wrote_is_escaped(tmp_path: Path, record, blank, write) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [
        record(sweep=evil, attack_settings={"sentence": evil, "poison_rate": 0.1}, defense=evil),
        record(sweep=evil, attack_settings={"sentence": "x", "poison_rate": 0.2}, plm=evil),
        record(task=evil, versions=evil, device=evil, flags=(evil,)),
        blank("failed", error=evil, log=evil, error_class=evil, defense="x", seed=9),
    ]
    out = write(tmp_path, rows)
    page = _page(out)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [script for script in page.scripts if script.startswith("alert")]
    assert evil in page.words
    assert "<img" not in (out / "summary.md").read_text()


def test_svg_of_each_setup(sweep_out: Path, tmp_path: Path, record, write) -> None:
    pytest.importorskip("matplotlib")
    path = write_tradeoff_svg(sweep_out, tmp_path / "pictures" / "tradeoff.svg")
    assert path.read_text().startswith("<?xml")
    out = write(tmp_path / "two", [record(), record(plm="roberta")])
    write_tradeoff_svg(out, tmp_path / "t.svg")
    assert (tmp_path / "t-2.svg").exists()


def test_svg_with_a_panel_for_each_attack(tmp_path: Path, record, write) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        record(attack=attack, attack_settings={}, poison_rate=None, asr=asr, defense=defense)
        for attack, defense, asr in (("por", "none", 0.9), ("por", "recipe", 0.2), ("neuba", "none", 0.8))
    ]  # fmt: skip
    out = write(tmp_path, rows)
    panels = write_tradeoff_svg(out, tmp_path / "panels.svg", by_attack=True).read_text()
    assert "<!-- Against por -->" in panels
    assert "<!-- Against neuba -->" in panels
    worst = write_tradeoff_svg(out, tmp_path / "worst.svg").read_text()
    assert "<!-- Against por -->" not in worst
    assert "<!-- Worst case over attacks" in worst


@pytest.mark.parametrize("text", ["{", "[]", '{"command": 3}'])
def test_a_note_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    assert ("Command", "run.json cannot be read") in reproduce([], [str(tmp_path)])


def test_a_folder_of_an_older_version_has_no_note(tmp_path: Path) -> None:
    assert "Command" not in dict(reproduce([], [str(tmp_path)]))
