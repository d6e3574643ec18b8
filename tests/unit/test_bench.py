"""What the benchmark makes of figures. The measuring itself is not tested here: run `bench/run`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import check, targets
from bench.base import Run
from bench.runs import Results
from bench.systems import ALL
from cassata.config import load
from tests.conftest import CHECKOUT

RUNS = [
    Run(
        "burst",
        "cassata-mariadb",
        1,
        figures={"drain_per_second": 20_000, "worker_cpu_ms_per_event": 0.12, "server_cpu_ms_per_event": 0.05},
    ),
    Run("burst", "celery", 1, figures={"drain_per_second": 2_000}),
    Run("burst", "bullmq", 1, figures={"drain_per_second": 10_000}),
    Run("steady", "cassata-mariadb", 1, figures={"lateness_p99_ms": 5, "early": 0}),
    Run("steady", "celery", 1, figures={"lateness_p99_ms": 80, "early": 0}),
    Run("steady", "rq", 1, figures={"lateness_p99_ms": 20, "early": 7}),
    Run("add", "cassata-mariadb", 1, "single", {"events_per_second": 700}),
    Run("add", "cassata-mariadb", 1, "bare", {"events_per_second": 1_000}),
]


def verdicts(runs: Sequence[Run]) -> dict[str, bool | None]:
    return {target.text: target.met for target in targets.judge(runs, cores=4)}


def test_targets_are_judged_by_ratio_and_what_was_not_measured_is_not_judged() -> None:
    found = verdicts(RUNS)

    assert found["burst on MariaDB / BullMQ"] is True
    assert found["burst on MariaDB / fastest Python peer"] is True
    assert found["add one by one / the same insert in a bare Flask view"] is False
    assert found["claim and record at 10 M rows / at 10 k"] is None


def test_a_peer_that_sends_early_is_not_the_one_to_beat() -> None:
    early = "steady: p99 / best peer's p99"

    assert verdicts(RUNS)[early] is True
    assert verdicts([*RUNS, Run("steady", "dramatiq", 1, figures={"lateness_p99_ms": 20, "early": 0})])[early] is False


def test_the_median_of_several_runs_counts() -> None:
    slow = [Run("burst", "cassata-mariadb", number, figures={"drain_per_second": 12_000}) for number in (2, 3)]

    assert verdicts([*RUNS, *slow])["burst on MariaDB / BullMQ"] is False


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    lacking = check.store(folder_of(tmp_path / "then", RUNS), tmp_path / "ratios.json")
    assert "burst on MariaDB / Celery" not in lacking
    return tmp_path / "ratios.json"


def folder_of(folder: Path, runs: Sequence[Run]) -> Path:
    results = Results(folder)
    for run in runs:
        results.add(run)
    (folder / "facts.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("rate", "word"), [(14_200, "as good"), (13_800, "WORSE"), (40_000, "as good")])
def test_the_check_fails_when_a_ratio_falls_by_more_than_thirty_percent(rate: float, word: str, stored: Path, tmp_path: Path) -> None:
    now = [replace(RUNS[0], figures={**RUNS[0].figures, "drain_per_second": rate}), *RUNS[1:]]
    then = json.loads(stored.read_text())["ratios"]

    compared = {each.ratio.name: each for each in check.compare(check.ratios(now), then)}

    assert compared["burst on MariaDB / Celery"].verdict == word
    assert compared["burst on MariaDB / Celery"].fails is (word == "WORSE")


def test_the_check_fails_clearly_for_what_is_missing(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "now", [run for run in RUNS if run.system != "celery"])

    assert check.check(folder, stored) == 1
    assert "burst on MariaDB / Celery: not measured" in capsys.readouterr().out
    assert check.check(folder, tmp_path / "absent.json") == 1
    assert "--store-check" in capsys.readouterr().err


def test_the_ratios_to_keep_are_stored_whole() -> None:
    kept = json.loads((CHECKOUT / "bench" / "ratios.json").read_text())["ratios"]

    assert {ratio.name for ratio in check.RATIOS if not ratio.optional} <= set(kept)


def test_the_page_names_the_batch_that_is_shipped() -> None:
    """The floor is measured at the batch size of the shipped worker: its figures are void when that changes."""
    batch = load(CHECKOUT / "config" / "worker.yaml", environment={}).settings.worker.num_events_processed_per_transaction

    assert f"batches of {batch}" in (CHECKOUT / "docs" / "performance.md").read_text()


def test_every_system_has_a_name_that_reports_know() -> None:
    from bench.summary import LABELS

    assert set(ALL) == set(LABELS)
