"""Is the suite worth anything? Break one promise at a time in a copy of the code, and see the tests turn red that keep it.

`bin/test --mutants` runs them all, some at a time; with words after it, those whose names hold one of the words. A mutant that no
test notices has survived: that is a hole in the suite, and the exit code says so. The code that a mutant replaces has to be there,
exactly once: who changes it changes the mutant, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "bench-results", "node_modules", "var", "build", "dist")
LONGEST_SECONDS = 600
ALL_PASSED, SOME_FAILED = 0, 1  # pytest's exit codes: any other one means that they have not run


class Change(NamedTuple):
    """Exact text in a file, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A promise that is broken, how, and the tests of which at least one has to notice."""

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


class Verdict(NamedTuple):
    word: str
    tests: str
    seconds: float
    said: str


def mutant(name: str, *changes: Change, tests: str) -> Mutant:
    return Mutant(name, changes, tuple(tests.split()))


SCHEDULER, STORE, DATABASE = "cassata/scheduler.py", "cassata/store.py", "cassata/database.py"
TIMETABLE, SERIES = "cassata/timetable.py", "tests/store/test_series.py"
RECURRENCE, RECURRENCES = "cassata/recurrence.py", "tests/unit/test_recurrence.py"
OUTBOX = "tests/store/test_outbox.py"
CLAIMING, LIMITS, PLANS = "tests/store/test_claiming.py", "tests/store/test_limits.py", "tests/store/test_plans.py"

MUTANTS = (
    # --- fences
    mutant(
        "complete without a fence",
        Change(
            STORE,
            'update(events)\n    .where(_ONE_OF_IDS, E.fence == bindparam("owner"),',
            'update(events)\n    .where(_ONE_OF_IDS, E.fence >= bindparam("owner"),',
        ),
        tests=f"{CLAIMING}::test_a_lost_lease_cannot_complete_an_event",
    ),
    mutant(
        "end and release without a fence",
        Change(SCHEDULER, "return owned is not None and owned.fence == delivery.fence", "return owned is not None"),
        Change(
            STORE,
            '_END = (\n    update(events)\n    .where(E.id == bindparam("of"), E.fence == bindparam("owner"),',
            '_END = (\n    update(events)\n    .where(E.id == bindparam("of"), E.fence >= bindparam("owner"),',
        ),
        Change(
            STORE,
            '_RELEASE = (\n    update(events)\n    .where(E.id == bindparam("of"), E.fence == bindparam("owner"),',
            '_RELEASE = (\n    update(events)\n    .where(E.id == bindparam("of"), E.fence >= bindparam("owner"),',
        ),
        tests=f"{CLAIMING}::test_a_lost_lease_cannot_complete_an_event {CLAIMING}::test_a_stale_owner_cannot_release",
    ),
    mutant(
        "a claim that was never made put back from somebody else",
        Change(
            SCHEDULER,
            "for doubt, delivery in doubtful.items() if doubt in leases]",
            "for doubt, delivery in doubtful.items() if doubt.id in there]",
        ),
        tests=f"{CLAIMING}::test_a_claim_that_was_never_made_is_not_put_back_from_somebody_else",
    ),
    # --- locks
    mutant(
        "claim waits for locked rows",
        Change(STORE, "question.with_for_update(skip_locked=True)", "question.with_for_update()"),
        tests=f"{PLANS}::test_a_claim_locks_little_more_than_it_takes_and_leaves_the_next_ones_to_others",
    ),
    mutant(
        "REPEATABLE READ",
        Change(DATABASE, "TRANSACTION ISOLATION LEVEL READ COMMITTED", "TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
        Change(DATABASE, 'if isolation != "READ-COMMITTED":', "if not isolation:"),
        tests="tests/store/test_database.py::test_an_add_beside_a_claim_does_not_wait",
    ),
    mutant(
        "no index hint",
        Change(
            STORE,
            'return question.with_hint(events, hint, "mysql").with_hint(events, hint, "mariadb")',
            "return question if hint else None",
        ),
        tests=f"{PLANS}::test_no_statement_that_could_read_too_much_may_choose_its_index",
    ),
    # --- transactions
    mutant(
        "no rollback before the next try",
        Change(
            DATABASE,
            "            with self._engines.write.connect() as conn, _ended_for_sure(conn), conn.begin():\n"
            "                return work(conn, tries)\n\n        return self._again(once, retry_duplicates=retry_duplicates)",
            "            return work(conn, tries)\n\n        with self._engines.write.begin() as conn:\n"
            "            return self._again(once, retry_duplicates=retry_duplicates)",
        ),
        tests=f"{CLAIMING}::test_a_claim_that_failed_leaves_everything_for_the_next_one",
    ),
    mutant(
        "sent before COMMIT has returned",
        Change(
            SCHEDULER,
            "            raise\n        self._noted.difference_update",
            "            if not claimed.deliveries:\n                raise\n            return Recorded(), claimed\n"
            "        self._noted.difference_update",
        ),
        tests=f"{CLAIMING}::test_a_claim_whose_answer_was_lost_is_put_back_at_once_and_not_counted",
    ),
    mutant(
        "an add that is not committed",
        Change(
            SCHEDULER,
            "with database.explained(), self._engines.read.connect() as conn:",
            "with database.explained(), self._engines.write.connect() as conn:",
        ),
        tests="tests/store/test_adding.py::test_what_is_acknowledged_is_stored",
    ),
    mutant(
        "attempts logged outside the transaction",
        Change(
            SCHEDULER,
            "            store.log_attempts(conn, [outcome for outcome, _ in kept])",
            "            with self._engines.read.connect() as apart:\n"
            "                store.log_attempts(apart, [outcome for outcome, _ in kept])",
        ),
        tests=f"{CLAIMING}::test_an_outcome_whose_commit_failed_leaves_no_trace_and_is_recorded_again[mariadb]",
    ),
    mutant(
        "an event changed while it is being sent",
        Change(STORE, "E.event_id == event_id).with_for_update()).first()", "E.event_id == event_id)).first()"),
        Change(
            STORE,
            "update(events).where(E.id == id_, E.status.in_(UNSENT)).values(columns)",
            "update(events).where(E.id == id_).values(columns)",
        ),
        tests="tests/store/test_changing.py::test_an_old_version_is_never_sent_once_a_change_was_acknowledged[mariadb]",
    ),
    mutant(
        "a change that is no new version",
        Change(
            STORE,
            '        "fence": E.fence + 1,\n        "payload": asked.payload,',
            '        "payload": asked.payload,',
        ),
        tests="tests/store/test_changing.py::test_a_change_of_another_version_is_refused_unless_it_is_so_already",
    ),
    mutant(
        "what is too late sent nevertheless",
        Change(
            "cassata/model.py", "max(self.due_at, self.replayed_at) > self.max_lateness_ms", "self.due_at > self.max_lateness_ms * 1_000"
        ),
        tests="tests/unit/test_worker.py::test_what_is_too_late_when_it_is_claimed_fails_unsent_and_has_had_no_attempt",
    ),
    # --- leases and time
    mutant(
        "lost leases not counted",
        Change(SCHEDULER, "if row.lost_leases + 1 >= LOST_LEASES", "if row.lost_leases < 0"),
        tests=f"{CLAIMING}::test_an_event_whose_workers_are_lost_three_times_has_failed",
    ),
    mutant(
        "a lease shorter than the deadline",
        Change(SCHEDULER, "self.look_ahead_ms + (timeout_ms or self.request_timeout_ms)", "self.look_ahead_ms + self.request_timeout_ms"),
        tests=f"{CLAIMING}::test_a_lease_lasts_for_the_events_own_deadline",
    ),
    mutant(
        "what is claimed ahead sent early",
        Change(
            "cassata/worker.py",
            "while self._held and self._held[0].send_at <= max(now, self._scheduler.clock.estimate()):",
            "while self._held:",
        ),
        tests="tests/unit/test_worker.py::test_an_event_is_held_until_its_instant_and_not_sent_before",
    ),
    # --- tenants
    mutant(
        "keys of one application good for another",
        Change(
            "cassata/service/auth.py",
            "if application_id is not None and key.application_id not in {None, application_id}:",
            "if application_id is None and key.application_id is not None:",
        ),
        tests="tests/service/test_isolation.py::test_a_foreign_event_is_answered_as_an_unknown_one_of_ones_own",
    ),
    mutant(
        "what others have in flight not counted",
        Change("cassata/limits.py", "limits.max_in_flight - elsewhere.get(number, 0)", "limits.max_in_flight"),
        tests=f"{LIMITS}::test_no_more_than_its_limit_is_under_way_at_all_workers_together",
    ),
    mutant(
        "a breaker that uses up attempts",
        Change(STORE, "waiting.values(wake_at=case(", "waiting.values(attempts=E.attempts + 1, wake_at=case("),
        tests=f"{LIMITS}::test_a_destination_that_fails_is_left_alone_and_what_waits_for_it_uses_up_no_attempt",
    ),
    # --- the wire
    mutant(
        "every address dialled",
        Change(
            "cassata/courier/address.py",
            'if facts.never:\n            return f"{address} is {facts.never}"',
            "if facts:\n            return None",
        ),
        tests="tests/courier/test_conformance.py::test_a_refused_address_is_not_even_dialled "
        "tests/courier/test_address.py::test_an_address_that_no_policy_allows_is_refused_with_its_reason",
    ),
    mutant(
        "libcurl dials without asking",
        Change("cassata/courier/curl.py", "if self._settings.proxy is None and (reason :=", "if self._settings.proxy and (reason :="),
        tests="tests/courier/test_conformance.py::test_a_refused_address_is_not_even_dialled",
    ),
    mutant(
        "no deadline",
        Change(
            "cassata/courier/message.py",
            "return settings.request_timeout if delivery.timeout_ms is None else delivery.timeout_ms / 1000",
            "return 3600.0 + settings.request_timeout + (delivery.timeout_ms or 0)",
        ),
        tests="tests/courier/test_conformance.py::test_a_time_out_says_how_long_was_waited",
    ),
    mutant(
        "no deadline in libcurl",
        Change("cassata/courier/curl.py", "pycurl.TIMEOUT_MS, _milliseconds(self.until - now)", "pycurl.TIMEOUT_MS, 0"),
        tests="tests/courier/test_conformance.py::test_a_time_out_says_how_long_was_waited[curl]",
    ),
    mutant(
        "a webhook-id for each attempt",
        Change(
            "cassata/courier/message.py",
            "webhook_id(delivery.application_id, delivery.event_id)",
            "webhook_id(delivery.event_id, str(delivery.number))",
        ),
        tests="tests/courier/test_signature.py::test_the_timestamp_is_the_instant_of_the_attempt_and_the_id_stays",
    ),
    # --- series
    mutant(
        "occurrences of a series in a transaction of their own",
        Change(
            TIMETABLE,
            "            self._insert_missing(conn, plans, now)\n",
            "            with conn.engine.connect() as other, other.begin():\n                self._insert_missing(other, plans, now)\n",
        ),
        tests=f"{SERIES}::test_an_advance_that_dies_before_its_commit_has_done_nothing[mariadb]",
    ),
    mutant(
        "a series moved on without what was changed ahead",
        Change(TIMETABLE, 'if (row["application"], row["event_id"]) not in there]', 'if (row["application"], row["event_id"]) or there]'),
        tests=f"{SERIES}::test_one_occurrence_is_changed_by_itself {SERIES}::test_one_occurrence_is_cancelled_by_itself",
    ),
    mutant(
        "a paused series leaves what was made ahead",
        Change(TIMETABLE, "            self._remove_untouched(conn, application, series, now)\n", ""),
        tests=f"{SERIES}::test_a_paused_series_takes_back_what_is_not_due_and_goes_on_after_the_next_boundary",
    ),
    mutant(
        "exceptions of a series replaced with the others",
        Change(TIMETABLE, "is_as_made) and not store.is_exception(row)", "is_as_made)"),
        tests=f"{SERIES}::test_exceptions_outlive_another_content_where_the_new_rule_makes_their_instants",
    ),
    mutant(
        "occurrences of a series overlap",
        Change(TIMETABLE, "busy = self._is_busy(conn, plan, made)", "busy = False"),
        tests=f"{SERIES}::test_an_occurrence_is_left_out_as_long_as_the_one_before_it_is_unfinished",
    ),
    mutant(
        "what a series missed is not passed over",
        Change(TIMETABLE, "        _pass_over_missed(plan, now)\n", ""),
        tests=f"{SERIES}::test_what_nobody_was_there_to_make_is_caught_up_as_the_series_says",
    ),
    # --- recurrence
    mutant(
        "recurrence: a walk in vain goes on",
        Change(RECURRENCE, "        self.left -= 1\n", "        self.left -= 0\n"),
        tests=f"{RECURRENCES}::test_a_hostile_recurrence_is_refused_after_a_bounded_walk",
    ),
    mutant(
        "recurrence: what a gap moves is not held back",
        Change(RECURRENCE, "while held and _wall(held[0], self.zone) <= wall:", "while held:"),
        tests=f"{RECURRENCES}::test_a_recurrence_where_clocks_are_put_forward_and_back",
    ),
    mutant(
        "recurrence: a walk begins behind a gap",
        Change(RECURRENCE, "local.replace(tzinfo=None) - shift)", "local.replace(tzinfo=None))"),
        tests=f"{RECURRENCES}::test_a_recurrence_asked_behind_a_gap_still_finds_what_the_gap_moved",
    ),
    mutant(
        "recurrence: hours are skipped over a fold",
        Change(RECURRENCE, "_LONGEST_FOLD = 4 * _HOUR", "_LONGEST_FOLD = 0"),
        tests=f"{RECURRENCES}::test_a_recurrence_where_clocks_are_put_forward_and_back",
    ),
    mutant(
        "recurrence: a walk of cron repeats the first half of a fold",
        Change(RECURRENCE, "            elif at > last:", "            else:"),
        tests=f"{RECURRENCES}::test_cron_asked_within_a_fold_does_not_repeat_what_was_due_in_its_first_half",
    ),
    mutant(
        "recurrence: a midnight that clocks skip is one",
        Change(RECURRENCE, "if _wall(at, self.zone) != found.replace(tzinfo=None):", "if at < 0:"),
        tests=f"{RECURRENCES}::test_cron_on_a_day_without_a_midnight",
    ),
    mutant(
        "series: a follower is cancelled beside what advances the first",
        Change(
            TIMETABLE,
            "            self._lock_before(conn, series.follows)\n            unfinished = ",
            "            unfinished = ",
        ),
        tests="tests/store/test_series_chains.py::test_a_follower_that_is_ended_while_the_first_is_advanced_makes_none_any_more",
    ),
    # --- the lifecycle stream
    mutant(
        "stream: what has ended goes untold",
        Change(SCHEDULER, "self.outbox.write_ended(conn, [outcome.delivery for outcome, _ in kept])", "pass"),
        tests=f"{OUTBOX}::test_only_what_is_asked_for_is_told",
    ),
    mutant(
        "stream: a message is written beside its transaction",
        Change(
            "cassata/outbox.py",
            "        store.insert_messages(conn, rows)\n",
            "        self._transactions.write(lambda own, _tries: store.insert_messages(own, rows))\n",
        ),
        tests=f"{OUTBOX}::test_a_step_that_is_rolled_back_is_not_told",
    ),
    mutant(
        "stream: the next message does not wait for the one before",
        Change("cassata/streaming.py", "return self.events[self.ready.popleft()][0]", "return self._hasty()"),
        Change(
            "cassata/streaming.py",
            "    def note(self, message: Message",
            "    def _hasty(self) -> Message:\n"
            "        event = self.ready.popleft()\n"
            "        self.ready.extend([event] * (len(self.events[event]) > 1))\n"
            "        return self.events[event][0]\n\n"
            "    def note(self, message: Message",
        ),
        tests="tests/store/test_streaming.py::test_several_events_are_told_of_at_once_and_each_of_them_step_by_step",
    ),
    mutant(
        "stream: what comes after a refused message does not wait for it",
        Change("cassata/outbox.py", "if is_behind and (first.wake_at or row.wake_at):", "if not row.event_id:"),
        tests=f"{OUTBOX}::test_what_comes_after_one_that_is_put_off_waits_for_it_and_other_events_do_not",
    ),
    mutant(
        "stream: two workers tell of the same events",
        Change(STORE, "or_(ST.held_until <= now, ST.holder == holder))", "ST.held_until >= 0)"),
        tests=f"{OUTBOX}::test_one_at_a_time_has_the_messages_of_an_application_until_its_lease_ends",
    ),
)


# --- running them ------------------------------------------------------------------------------------------------------


def apply(mutant: Mutant, checkout: Path) -> None:
    """Change the files of a checkout. Raises ValueError if the text is not there exactly once."""
    for change in mutant.changes:
        file = checkout / change.file
        text = file.read_text()
        if (count := text.count(change.old)) != 1:
            raise ValueError(f"the mutant {mutant.name!r} finds its text {count} times in {change.file}, not once:\n{change.old}")
        file.write_text(text.replace(change.old, change.new))


def judge(mutant: Mutant, workplace: Path) -> Verdict:
    checkout = workplace / mutant.name.replace(" ", "-")
    shutil.copytree(CHECKOUT, checkout, ignore=shutil.ignore_patterns(*LEFT_OUT))
    apply(mutant, checkout)
    began = time.monotonic()
    code, said = run(checkout, mutant.tests)
    shutil.rmtree(checkout)
    return Verdict(word_for(code, said), count(said), time.monotonic() - began, said)


def run(checkout: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests on the code of a checkout; return pytest's exit code and what it wrote."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--timeout=60", *tests]
    check = "import cassata, sys; sys.exit(not cassata.__file__.startswith(sys.argv[1]))"
    surroundings = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", check, str(checkout)], cwd=checkout, env=surroundings, check=True)
    try:
        ended = subprocess.run(
            command, cwd=checkout, env=surroundings, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return SOME_FAILED, "it hung"
    return ended.returncode, ended.stdout + ended.stderr


def word_for(code: int, said: str) -> str:
    if code == SOME_FAILED:
        return "red"
    if code != ALL_PASSED:
        return "NOT RUN"
    return "SURVIVED" if " passed" in said else "skipped"


def count(said: str) -> str:
    """Return pytest's own last line: so many failed, so many passed."""
    lines = [line for line in said.splitlines() if " in " in line and ("passed" in line or "failed" in line or "skipped" in line)]
    return lines[-1].strip("= ") if lines else ""


def main(words: Sequence[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    unharmed = Mutant("nothing changed", (), tuple(sorted({test for mutant in chosen for test in mutant.tests})))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        workplace = Path(folder)
        verdicts = list(pool.map(lambda mutant: judge(mutant, workplace), [unharmed, *chosen]))
    green, *verdicts = verdicts
    for mutant, verdict in zip(chosen, verdicts, strict=True):
        print(f"{verdict.word:9} {mutant.name:55} {verdict.tests}")
        for test in mutant.tests:
            print(f"{'':9}   {test}")
    print(f"{len(chosen)} mutants in {time.monotonic() - began:.0f} s")
    bad = [verdict for verdict in verdicts if verdict.word not in {"red", "skipped"}]
    if green.word == "red" or green.word == "NOT RUN":
        print(f"the same tests are not green without any mutant, so that their red tells nothing:\n{green.said}")
        return 1
    for verdict in bad:
        print(verdict.said)
    skipped = sum(verdict.word == "skipped" for verdict in verdicts)
    if skipped:
        print(f"{skipped} MUTANTS WERE NOT TRIED: their tests were skipped, which need a MariaDB")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
