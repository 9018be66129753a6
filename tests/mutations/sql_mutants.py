"""Mutants of the SQL that folds, captures and reads, each with the test that kills it.

One change each, to a statement of ``aggregator/sql`` or to a function as migrations and ``attach`` leave it. A process with
AGGREGATOR_TEST_MUTANT set to a mutant's name runs the tests with it: ``python -m tests.mutations --sql`` tries them all.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import psycopg

ENVIRONMENT = "AGGREGATOR_TEST_MUTANT"


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in a place: a block (``fold.add``) or a function's signature."""

    name: str
    place: str
    old: str
    new: str
    killer: str
    """Arguments of pytest, below tests/."""
    equivalent: str | None = None
    """Why no test can tell it; then killer is a test that runs the place."""
    times: int = 1
    """How often it is there."""

    def mutated(self, text: str) -> str:
        """Return a text of the place with the change; the old one must be in it so many times."""
        assert text.count(self.old) == self.times, (
            f"{self.name}: {text.count(self.old)} times in {self.place}: {self.old}"
        )
        return text.replace(self.old, self.new)


CUT = "usage.cut_window(timestamptz, timestamptz)"
HOURS = (
    "usage.with_hours(usage.window_parts, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz,"
    " timestamptz)"
)
ROWS = "usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)"
SUMS = "usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text)"
FACT = "usage.fact_sql(text, date, date, integer, integer[], text)"
HOUR_FACT = "usage.hour_fact_sql(text, timestamptz, timestamptz, integer, integer[], text, text)"
EVENTS = "usage.window_events(usage.window_parts, uuid, text)"
QUARTERS = "usage.keep_quarters()"
DAYS = "usage.days_sql(usage.window_parts, boolean, boolean, uuid, text)"
RANGES = "usage.signed_events_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid, text)"
METRIC = "usage.metric_sql()"
PRESUMED_EVENTS = "usage.presumed_sql(timestamptz, timestamptz)"
KNOWN = "usage.are_well_formed(timestamptz[], timestamptz[])"
ZONES = "usage.daily_series(timestamptz, timestamptz, uuid, text)"
PLANNED = "usage.planned_rows(usage.window_parts, uuid, boolean, integer[], jsonb, jsonb)"
DOUBT = "usage.fingerprint_doubt()"
FINGERPRINT = "usage.fingerprint()"
ALL_PLANNED = "usage.planned_by_collection(usage.window_parts, jsonb, jsonb)"
ALL_CHOICE = "usage.by_collection(timestamptz, timestamptz, uuid)"
EXPECTED = "usage.expected_events(usage.window_parts)"
WITH_MARKS = "usage.with_marks(usage.window_parts, timestamptz, timestamptz)"
WITH_LATE = "usage.with_late_of(usage.window_parts, timestamptz[], timestamptz[], timestamptz[], timestamptz[])"
WITH_TOTALS = "usage.with_totals(usage.window_parts)"
TOTAL_SQL = "usage.total_sql(usage.window_parts, text)"
HOURLY_TOTAL = "usage.keep_hourly_total()"
DAYS_PLANNED = "usage.planned_daily_series(usage.window_parts, jsonb)"
DAYS_CHOICE = "usage.daily_series(timestamptz, timestamptz, uuid)"
HOURS_SQL = "usage.hours_sql(usage.window_parts, boolean, uuid, text)"
SIX_HOURS = "usage.keep_six_hours()"
LET_GO = "usage.let_go_of_marks()"
WHOLE_QUARTERS = "usage.whole_quarters(usage.window_parts)"
KEYS = "usage.planned_keys(boolean)"
CHOICE = "usage.collection_rows(timestamptz, timestamptz, uuid, boolean)"

REFRESH = "integration/test_refresh.py"
CAPTURE = "integration/test_capture.py"
HOURLY = "integration/test_hourly.py"
CONTENTS = "integration/test_contents.py"
PURGE = "integration/test_purge.py"
REBUILD = "integration/test_rebuild.py"
TRUST = "integration/test_trust.py"
HISTORIES = "integration/test_histories.py"
TOTALS = "integration/test_totals.py"
LOOKBACK = "integration/test_lookback.py"
BY_HAND = "mutations/test_mutations.py"
BOUNDARIES = "integration/test_boundaries.py"
ONE = "integration/test_one_collection.py"
OF_ALL = "integration/test_planned_windows.py"
WELL_FORMED = "integration/test_well_formed.py"
OF_MARKS = "integration/test_marks.py"
OF_HOURS = "integration/test_hourly_totals.py"
OF_QUARTERS = "integration/test_quarters.py"
PRESUMED = "integration/test_presumed.py"
ALL = f"{REFRESH} {BOUNDARIES} {BY_HAND} {CONTENTS} {HOURLY} {CAPTURE}"

MUTANTS = [
    # Fold: differences are added to what is there, to each rollup, and what became nothing is removed.
    Mutant("counts are replaced", "fold.add", "f.event_count + excluded.event_count", "excluded.event_count", ALL),
    Mutant("values are replaced", "fold.add", "f.total_value + excluded.total_value", "excluded.total_value", f"{REFRESH}::test_steps_are_bounded_and_recorded"),
    Mutant("second values are replaced", "fold.add", "f.secondary_value + excluded.secondary_value", "excluded.secondary_value", ALL),
    Mutant("rejections are replaced", "fold.add", "f.rejected_count + excluded.rejected_count", "excluded.rejected_count", ALL),
    Mutant("totals are replaced", "fold.add_total", "t.total_value + excluded.total_value", "excluded.total_value", ALL),
    Mutant("rejections of totals are replaced", "fold.add_total", "t.rejected_count + excluded.rejected_count", "excluded.rejected_count", ALL),
    Mutant("totals are added twice", "fold.add_total", "t.event_count + excluded.event_count", "t.event_count + 2 * excluded.event_count", ALL),
    Mutant("rows that add nothing are swept", "fold.sweep", "and r.event_count = 0 and", "and", ALL),
    Mutant("nothing is swept", "fold.sweep", "r.event_count = 0", "false", ALL),
    Mutant("totals are not swept", "fold.sweep_total", "r.event_count = 0", "false", ALL),
    Mutant("one reason wins", "fold.merge_daily", "sum(x.total_value)", "max(x.total_value)", ALL),
    Mutant("one reason's count wins", "fold.merge_daily", "sum(x.event_count)", "max(x.event_count)", ALL),
    Mutant("one key is the month's", "fold.derive", "sum(x.total_value)", "max(x.total_value)", ALL),
    Mutant("one key's rejections are the collection's", "fold.derive", "sum(x.rejected_count)", "max(x.rejected_count)", ALL),
    Mutant("a level without a job has no key", "fold.add_keys", " or (x.key).model_level is not null", "", ALL),
    Mutant("late changes of either sign for both", "fold.measured", "'l.sign = ' || %(late_sign)s::integer", "null::text || %(late_sign)s::integer", ALL),
    Mutant("the running day is restated", "fold.restate", "x.bucket < %(below)s", "x.bucket <= %(below)s", ALL),
    Mutant("the version stands still", "fold.count_version", "version + 1", "version", "integration/test_matviews.py integration/test_jobs.py"),
    Mutant("the state is not locked", "fold.lock_state", " for update", "", f"{BOUNDARIES}::test_two_at_once_with_the_same_new_key"),
    Mutant("an interrupted repair believes itself", "fold.distrust", ", repair_day = null", "", f"{REBUILD} {TRUST}"),
    Mutant("the first hour's first instant is in no hour", "fold.hour", ">= {since}", "> {since}", f"{BOUNDARIES}::test_an_event_where_hours_begin"),
    # Refresh: what is claimed is what is dropped, with its sign.
    Mutant("late changes add", "refresh.add_late", "sum(e.sign), coalesce", "count(*), coalesce", f"{REFRESH}::test_more_events_than_a_step_at_one_instant"),
    Mutant("late values add", "refresh.add_late", "usage.signed(e.sign, e.value)", "e.value", ALL),
    Mutant("late second values add", "refresh.add_late", "usage.signed(e.sign, e.secondary)", "e.secondary", ALL),
    Mutant("late rejections add", "refresh.add_late", "sum(e.sign) filter", "count(*) filter", ALL),
    Mutant("all is rejected", "raw_days.raw_day", "count(*) filter (where e.rejected)", "count(*)", ALL),
    Mutant("no second value is null", "raw_days.raw_day", "coalesce(sum(e.secondary), 0)", "sum(e.secondary)", ALL),
    Mutant("what is no number is presumed to be one", "raw_days.presumed_day", "sum(e.value) = 'NaN' or", "", PRESUMED),
    Mutant("what is no second number is presumed to be one", "raw_days.presumed_day", "sum(e.secondary) = 'NaN' or", "", PRESUMED),
    Mutant("41 decimals are presumed to be 40", "raw_days.presumed_day", "scale(sum(e.value)) > 40", "false", PRESUMED),
    Mutant("41 decimals of a second value are presumed to be 40", "raw_days.presumed_day", "scale(sum(e.secondary)) > 40", "false", PRESUMED),
    Mutant("types are presumed to be short", "raw_days.presumed_day", "octet_length(e.resource_type) > 128", "false", PRESUMED),
    Mutant("job types are presumed to be short", "raw_days.presumed_day", "octet_length(e.job_type) > 128", "false", PRESUMED),
    Mutant("model levels are presumed to be short", "raw_days.presumed_day", "octet_length(e.model_level) > 128", "false", PRESUMED),
    Mutant("a group's last metric is presumed to be all", "raw_days.presumed_day", "coalesce(sum(e.secondary), 0)", "sum(e.secondary)", ALL),
    Mutant("malformed sums stay", "raw_days.take_back", "x.bucket = any", "x.malformed and x.bucket = any", PRESUMED),
    Mutant("a number out of bounds is a summand", PRESUMED_EVENTS,
           "case when n.value between -1e18 and 1e18 then n.value when n.value is not null then 'NaN' end", "n.value", PRESUMED),
    Mutant("a second number out of bounds is a summand", PRESUMED_EVENTS,
           "case when n.secondary between -1e18 and 1e18 then n.secondary when n.secondary is not null then 'NaN' end", "n.secondary", PRESUMED),
    Mutant("what is no number is nothing", PRESUMED_EVENTS,
           "coalesce(usage.parsed_number(j.value), 'NaN')", "usage.parsed_number(j.value)", PRESUMED),
    Mutant("workers know all keys", "fold.add_keys", "and not exists (select from usage.key k", "and true or exists (select from usage.key k", "integration/test_jobs.py"),
    Mutant("the last claimed instant is dropped whole", "refresh.drop_claimed", "<", "<=", ALL),
    Mutant("a change at the frontier stays", "refresh.drop_covered", ">=", ">", f"{BOUNDARIES}::test_a_change_at_the_old_frontier"),
    Mutant("a change at the end of a step goes", "refresh.drop_covered", "< %(to)s", "<= %(to)s", REFRESH,
           "what lies there is read raw from then on, whatever is noted of it"),
    Mutant("a step begins after its first instant", "raw_days.next_day_of_events", ">=", ">", f"{BOUNDARIES}::test_a_day_of_one_event_at_midnight"),
    Mutant("a step's day ends a day late", "raw_days.next_day_of_events", "usage.day_start(usage.next_day(usage", "usage.day_start(usage.next_day(1 + usage", ALL),
    Mutant("after a TRUNCATE sealed late changes go", "refresh.drop_unsealed_late", " where l.created_at >= s.sealed_until", "", f"{PURGE} {CAPTURE} integration/test_attach.py"),
    Mutant("a TRUNCATE hides a gap", "refresh.believe_anew", "and usage.fingerprint_doubt() is null", "", f"{TRUST}::test_truncate_leaves_other_doubts",
           "a gap keeps telling, or is noted by the next step, before it commits"),
    Mutant("no partition is new", "fold.any_new_partition", "and (exists", "and false and (exists", f"{TRUST} integration/test_partitions.py"),
    Mutant("no child is read", "fold.explain", "from {source}", "from only {source}", "integration/test_jobs.py"),
    Mutant("a repair goes on over a partition that it does not know", "fold.repair_anew", "where repair_day is not null", "where false", "integration/test_partitions.py"),
    Mutant("no partition is gone", "refresh.any_gone", "l.leaf is not null", "false", f"{TRUST} integration/test_partitions.py"),
    # The frontier: only upwards, and all who wrote before are waited for.
    Mutant("the frontier follows the clock back", "frontier.advance", "           pg_sequence_last_value('usage.frontier_seq'),\n", "", REFRESH),
    Mutant("the frontier stays behind the rollups", "frontier.advance", "where isfinite(s.frontier)", "where false", "integration/test_restore.py"),
    Mutant("a frontier that is even is behind", "frontier.behind", "< extract", "<= extract", "integration/test_restore.py::test_a_sequence_in_order"),
    Mutant("writers to partitions are not waited for", "frontier.writers", "on i.inhparent = t.relid", "on false", f"{BOUNDARIES}::test_a_writer_to_a_partition"),
    Mutant("writers that end are waited for no longer", "frontier.still_open", "and l.granted", "and not l.granted", "integration/test_locks.py"),
    # Capture: what is late is logged with its sign, what is sealed is not.
    Mutant("deletes add", "capture.capture_body", "values (-1, old", "values (1, old", CAPTURE),
    Mutant("whoever has a table forges", "capture.capture_body", "or not coalesce", "or false and not coalesce", CAPTURE),
    Mutant("whoever has a table truncates", "capture.truncate_body", "if coalesce", "if true or coalesce", CAPTURE),
    Mutant("sealed events shrink history", "capture.capture_body", " and coalesce(old.created_at >= seal, true)", "", "integration/test_attach.py::test_changes_below_the_seal"),
    Mutant("the seal's first instant is sealed", "capture.capture_body", "coalesce(old.created_at < frontier, true) and coalesce(old.created_at >= seal, true)", "coalesce(old.created_at < frontier, true) and coalesce(old.created_at > seal, true)", f"{BOUNDARIES}::test_a_delete_at_the_seal"),
    Mutant("what moves below the seal is lost", "capture.capture_body", "old.created_at >= seal or new", "new", f"{PURGE} integration/test_attach.py"),
    Mutant("what moves from below the seal is lost", "capture.capture_body", "old.created_at >= seal or new.created_at >= seal", "old.created_at >= seal", "integration/test_attach.py::test_changes_below_the_seal"),
    Mutant("what moves to the tail is logged", "capture.capture_body", "new.created_at is not null\n       and coalesce(new.created_at < frontier, true)", "new.created_at is not null", CAPTURE),
    Mutant("what was at the tail is logged", "capture.capture_body", "coalesce(old.created_at < frontier, true) and ", "", CAPTURE),
    Mutant("an event without an instant is logged", "capture.capture_body", "if new.created_at is not null then", "if true then", f"{CONTENTS} {HISTORIES}"),
    Mutant("a delete at the seal logs nothing", "capture.unsealed", ">=", ">", f"{BOUNDARIES}::test_a_delete_at_the_seal"),
    Mutant("unknown is not late", "capture.late", "is not false", "is true", f"{CAPTURE}::test_nothing_is_known_of_the_frontier"),
    Mutant("what leaves for the tail is not logged", "capture.update_trigger", "({late_old} or {late_new})", "{late_new}", CAPTURE),
    Mutant("what comes from the tail is not logged", "capture.update_trigger", "({late_old} or {late_new})", "{late_old}", CAPTURE),
    Mutant("texts that are equal as numbers", "capture.update_trigger", "old.detail::text is distinct from new.detail::text", "old.detail is distinct from new.detail", f"{CONTENTS} {CAPTURE}"),
    Mutant("another collection is no change", "capture.update_trigger", "or old.collection_id is distinct from new.collection_id", "", CAPTURE),
    Mutant("another type is no change", "capture.update_trigger", "or old.resource_type is distinct from new.resource_type", "", f"{CAPTURE} {HISTORIES}"),
    Mutant("a purge calls the function", "capture.delete_trigger", " and {unsealed_old}", "", "integration/test_attach.py::test_changes_below_the_seal",
           "the function looks again: each delete costs a call, and nothing else"),
    Mutant("the seal's month stays", "capture.delete_monthly", "month >=", "month >", f"{PURGE} integration/test_attach.py"),
    Mutant("the seal's month begins anew", "capture.restore_monthly", "where isfinite", "where not isfinite", f"{PURGE} integration/test_attach.py"),
    # Seal and hours.
    Mutant("a change at the seal is lost", "seal.drop_late", "<", "<=", f"{BOUNDARIES}::test_a_late_change_at_the_seal"),
    Mutant("sealed changes add", "seal.add_late", "usage.signed(e.sign, e.value)", "e.value", f"{BOUNDARIES}::test_late_corrections_below_a_new_seal"),
    Mutant("hours go on below a seal that cuts one", "seal.set_sealed", "else greatest(hourly_since", "else least(hourly_since", f"{HOURLY} {PURGE}"),
    Mutant("hours begin with one that is folded", "hourly.turn_on", "usage.hours_from(frontier)", "usage.hours_to(frontier)", HOURLY),
    Mutant("a fill takes what is not folded", "hourly.collect", "case when e.late then -e.sign else e.sign end", "e.sign", HOURLY),
    Mutant("a fill forgets what is not folded", "hourly.collect", "from {measured} e,", "from (select * from {measured} x where not x.late) e,", HOURLY),
    # Verify and repair.
    Mutant("late changes are expected", "verify.expected", "case when e.late then -e.sign else e.sign end", "e.sign", REBUILD),
    Mutant("rejections are not compared", "verify.differences", "having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0\n), days", "having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0\n), days", f"{BOUNDARIES}::test_a_number_that_is_off"),
    Mutant("the month's first day is no day of it", "verify.differences", "where d.day >= usage.month_of", "where d.day > usage.month_of", f"{BOUNDARIES}::test_verify_part_of_a_month"),
    Mutant("a stray total is overlooked", "verify.next_bucket", "(select min(t.day) from usage.daily_total t where t.day >= %(day)s::date),", "", f"{BOUNDARIES}::test_a_row_without_events"),
    Mutant("a stray row of a collection is overlooked", "verify.next_bucket", "(select min(c.day) from usage.daily_collection_fact c where c.day >= %(day)s::date),", "", f"{BOUNDARIES}::test_a_row_without_events"),
    Mutant("hours are added, not compared", "verify.hour_differences", "-h.event_count, -h.total_value, -h.secondary_value, -h.rejected_count\n          from usage.hourly h", "-h.event_count, -h.total_value, -h.secondary_value, h.rejected_count\n          from usage.hourly h", HOURLY),
    Mutant("hours end an hour late", "verify.hour_differences", "from usage.hourly h\n         where h.hour >= %(hour_from)s::timestamptz and h.hour < %(hour_to)s", "from usage.hourly h\n         where h.hour >= %(hour_from)s::timestamptz and h.hour <= %(hour_to)s", HOURLY),
    Mutant("a repair believes what changed meanwhile", "verify.believe", "   and usage.fingerprint_doubt() is null\n", "", f"{REBUILD} {TRUST}"),
    Mutant("a repair believes another one's reason", "verify.believe", "   and repair_run = %(run)s\n", "   and %(run)s is not null\n", f"{REBUILD} {TRUST}"),
    Mutant("a repair goes on for another one", "verify.repaired_until", " and repair_run = %(run)s", " and %(run)s is not null", REBUILD),
    Mutant("a repair goes on after a difference", "verify.distrust", " or repair_day > %(from)s::date", " and %(from)s::date is not null", f"{REBUILD} {TRUST}"),
    # Lookback.
    Mutant("a day fewer is looked back", "lookback.first_day", "- s.lookback_days", "- s.lookback_days + 1", LOOKBACK),
    Mutant("no grace for open writers", "lookback.target", "- make_interval(secs => %(grace)s)", "- make_interval(secs => 0 * %(grace)s)", LOOKBACK),
    # Read: a window's parts, each once.
    Mutant("the tail from the frontier on", CUT, "p.tail_from := greatest(top, since)", "p.tail_from := top", ALL),
    Mutant("the tail has no end", CUT, "p.tail_to := until", "p.tail_to := null", ALL),
    Mutant("the left cut is added", CUT, "p.head_sign := -1", "p.head_sign := 1", ALL),
    Mutant("the right cut is added", CUT, "p.foot_sign := -1", "p.foot_sign := 1", ALL),
    Mutant("the first days are added", CUT, "p.left_sign := -1", "p.left_sign := 1", ALL),
    Mutant("the last days are added", CUT, "p.right_sign := -1", "p.right_sign := 1", ALL),
    Mutant("a cut month is whole", CUT, "p.right_to := p.day_to;", "p.right_to := last_from;", ALL),
    Mutant("late changes above the frontier count", CUT, "days_end := least(coalesce(days_end, usage.day_start(p.day_to, s.time_zone)), top)", "days_end := coalesce(days_end, usage.day_start(p.day_to, s.time_zone))", f"{BY_HAND} concurrency"),
    Mutant("late changes between hours count", CUT, "if spans_to[n - 1] < spans_from[n] then", "if false then", HOURLY),
    Mutant("late changes of the last hours do not count", CUT, "if after_from < after_to then", "if false then", HOURLY),
    Mutant("in doubt rollups are read", CUT, "top := case when doubt is null then s.frontier else s.sealed_until end", "top := s.frontier", TRUST),
    Mutant("a cut sealed day is told as exact", CUT, "format('the window starts inside %s, which is sealed: that day counts whole', d);", "format('the window starts inside %s, which is sealed: that day counts whole', d);\n        p.exact := true;", "integration/test_attach.py"),
    Mutant("an hour's first part has the hour's sign", HOURS, "case when first > from_at then sign else -sign end", "sign", HOURLY),
    Mutant("an hour's last part has the hour's sign", HOURS, "case when last < to_at then sign else -sign end", "sign", HOURLY),
    Mutant("an hour of the day before", HOURS, "usage.hours_to(from_at) >= day_from and ", "", HOURLY),
    Mutant("an hour of the day after", HOURS, "usage.hours_from(to_at) <= day_to and ", "", f"{BOUNDARIES}::test_hours_at_a_midnight_late_in_one"),
    Mutant("hours that are not there", HOURS, "first := greatest(first, low);", "", HOURLY),
    Mutant("the frontier's hour reaches above it", HOURS, "last := least(last, top);", "", f"{BOUNDARIES}::test_hours_up_to_a_frontier_that_cuts_one"),
    Mutant("no late change is looked for", EVENTS, "l.created_at >= p.late_from", "l.created_at > p.late_to", ALL),
    Mutant("the foot is the head", EVENTS, "array[p.head_sign, p.foot_sign]", "array[p.foot_sign, p.head_sign]", ALL),
    Mutant("days on the right are left out", DAYS, "least(p.right_to, last)", "p.right_from", ALL),
    Mutant("a quarter begins before the window", WHOLE_QUARTERS, "if quarter_from < p.month_from then", "if false then", OF_QUARTERS),
    Mutant("a quarter ends behind the window", WHOLE_QUARTERS, "quarter_to := usage.quarter_of(p.month_to);", "quarter_to := usage.next_quarter(usage.quarter_of(p.month_to));", OF_QUARTERS),
    Mutant("months behind the quarters are left out", DAYS, "quarter_to, last_month, 1", "last_month, last_month, 1", OF_QUARTERS),
    Mutant("months before the quarters are left out", DAYS, "least(quarter_from, last_month)", "case when quarter_from < p.month_to then p.month_from else last_month end", OF_QUARTERS),
    Mutant("keys of AI are read from quarters", DAYS, "if not by_key and coalesce(position('*' in bucket) = 0, true)", "if coalesce(position('*' in bucket) = 0, true)", OF_QUARTERS),
    Mutant("months are told apart in quarters", DAYS, "coalesce(position('*' in bucket) = 0, true)", "true", f"{OF_QUARTERS} {TOTALS}"),
    Mutant("quarters are read before they are filled", WHOLE_QUARTERS, "(select s.has_quarters from usage.state s)", "true", OF_QUARTERS),
    Mutant("what a month loses stays in its quarter", QUARTERS, "-o.total_value", "0 * o.total_value", OF_QUARTERS),
    Mutant("a quarter of nothing stays", QUARTERS, "f.event_count = 0", "false", OF_QUARTERS),
    Mutant("quarters outlive their months", QUARTERS, "truncate usage.quarterly_collection_fact;", "", OF_QUARTERS),
    Mutant("a quarter is compared with the months of the range", "verify.differences", "where m.month >= %(quarter)s::date", "where m.month >= greatest(%(quarter)s::date, usage.month_of(%(from)s::date))", OF_QUARTERS),
    Mutant("a quarter is compared once for each month", "verify.bounds", "when usage.quarter_of(%(before)s::date) = usage.quarter_of(%(from)s::date)", "when %(before)s::date is null and false", f"{TRUST}::test_corrupted_rollup"),
    Mutant("a stray quarter is overlooked", "verify.next_bucket", "(select min(q.quarter) from usage.quarterly_collection_fact q where q.quarter >= %(day)s::date),", "", f"{BOUNDARIES}::test_a_row_without_events"),
    Mutant("days on the left are added", DAYS, "least(p.left_to, last), p.left_sign", "least(p.left_to, last), abs(p.left_sign)", ALL),
    Mutant("a bucket too many", FACT, "f.%I >= %L::date and f.%I < %L::date", "f.%I >= %L::date and f.%I <= %L::date", ALL),
    Mutant("a bucket too many of a collection", FACT, "buckets - 1", "buckets", ALL),
    Mutant("second values are not taken off", FACT, "-f.secondary_value as", "f.secondary_value as", ALL),
    Mutant("many buckets of a collection are all collections'", FACT, "' and f.key_id = any (%L::integer[])', keys) end", "'', keys) end", ALL),
    Mutant("an hour too many", HOUR_FACT, "f.hour < %L::timestamptz", "f.hour <= %L::timestamptz", HOURLY),
    Mutant("an hour too many of a collection", HOUR_FACT, "::bigint - 1", "::bigint", HOURLY),
    Mutant("hours are not taken off", HOUR_FACT, "-f.total_value as", "f.total_value as", HOURLY),
    Mutant("a collection's keys are its types'", "usage.keys_of(uuid, boolean)", "case when by_key then k.id else k.collection_key end", "k.id", ALL),
    Mutant("keys are types", "usage.keys_of(uuid, boolean)", "case when by_key then k.id else k.collection_key end", "k.collection_key", ALL),
    Mutant("days of nothing are shown", ROWS, "where s.event_count <> 0", "", ALL),
    Mutant("collections of nothing are shown", ROWS, "having sum(k.event_count) <> 0$query$, of_keys));\n    end if;\n    if of_keys is not null and ai", "$query$, of_keys));\n    end if;\n    if of_keys is not null and ai", ALL),
    Mutant("keys of nothing are shown", ROWS, "having sum(k.event_count) <> 0$query$, of_keys));\n    end if;\n    if receipt", "$query$, of_keys));\n    end if;\n    if receipt", ALL),
    Mutant("collections of nothing in whole days are shown", ROWS, "     where k.event_count <> 0$query$", "$query$", ALL),
    Mutant("all is AI", ROWS, "     where k.resource_type = 'ai'\n", "", ALL),
    Mutant("raw values have no sign", EVENTS, "'usage.signed(m.sign, m.value)'", "'m.value'", ALL),
    Mutant("raw second values have no sign", EVENTS, "'usage.signed(m.sign, m.secondary)'", "'m.secondary'", ALL),
    Mutant("raw values have a sign only beside late ones", EVENTS, "case when any_late or -1 = any (signs) then 'usage.signed(m.sign, m.value)'", "case when any_late then 'usage.signed(m.sign, m.value)'", WELL_FORMED),
    Mutant("raw values have a sign only where hours or days have", EVENTS, "case when any_late or -1 = any (signs) then 'usage.signed(m.sign, m.secondary)'", "case when -1 = any (signs) then 'usage.signed(m.sign, m.secondary)'", f"{WELL_FORMED} {ALL}"),
    Mutant("one collection's edges are known", EVENTS, "signs is not null and collection is null and", "signs is not null and", WELL_FORMED),
    Mutant("edges are known and read again", EVENTS, "        signs := null;\n        starts := null;\n        ends := null;\n", "", WELL_FORMED),
    Mutant("the tail goes with known edges", EVENTS, "if signs is not null or p.tail_from is not null or any_late then", "if signs is not null or any_late then", f"{WELL_FORMED} {ALL}"),
    Mutant("late changes go with known edges", EVENTS, "if signs is not null or p.tail_from is not null or any_late then", "if signs is not null or p.tail_from is not null then", f"{WELL_FORMED} {ALL}"),
    Mutant("edges have days of UTC", EVENTS, "usage.local_day(r.from_at, p.zone) as day", "usage.local_day(r.from_at, 'UTC') as day", WELL_FORMED),
    Mutant("the tail has days of UTC", EVENTS, "            p.zone,\n", "            'UTC',\n", f"{WELL_FORMED} {ALL}"),
    Mutant("only AI is read", ROWS, "case when ai and not by_collection and not daily then 'ai' end", "'ai'", WELL_FORMED),
    Mutant("what is known is all added", "usage.well_formed_text(integer, date, text, text, text)", "WHEN '-1'::integer THEN '-'::text", "WHEN '-1'::integer THEN ''::text", WELL_FORMED),
    Mutant("what waits in an edge is not looked for", KNOWN, "(select min(l.created_at) from usage.late_change l where l.created_at >= r.from_at) < r.to_at\n                           or ", "", WELL_FORMED),
    Mutant("what waits anywhere puts edges in doubt", KNOWN, "< r.to_at", "is not null", WELL_FORMED),
    Mutant("rejections of a day are not looked at", KNOWN, "t.rejected_count <> 0 or ", "", WELL_FORMED),
    Mutant("long types are not looked for", KNOWN, " or octet_length(t.resource_type) > 128", "", WELL_FORMED),
    Mutant("a range is of one day", KNOWN, "and usage.local_day(r.to_at, s.time_zone)", "and usage.local_day(r.from_at, s.time_zone)", WELL_FORMED),
    Mutant("lookback knows edges", KNOWN, "s.capture_mode <> 'lookback'", "true", WELL_FORMED),
    Mutant("hours are in no day", ROWS, "format(\n                'select h.bucket, k.resource_type, h.event_count", "format(\n                'select h.bucket, k.resource_type, 0 * h.event_count", HOURLY),
    Mutant("weeks by months", SUMS, "grain in ('none', 'month')", "grain in ('none', 'month', 'week')", TOTALS),
    Mutant("groups of nothing are shown", SUMS, "having sum(z.event_count) <> 0", "", f"{TOTALS} integration/test_export.py"),
    Mutant("general sums of nothing are null", SUMS, "coalesce(sum(z.total_value), 0)", "sum(z.total_value)", f"{TOTALS} {WELL_FORMED}"),
    Mutant("sums of nothing are null", ROWS, "coalesce(sum(k.total_value), 0)", "sum(k.total_value)", ALL, times=2),
    Mutant("days' sums of nothing are null", ROWS, "coalesce(sum(z.total_value), 0)", "sum(z.total_value)", ALL),
    Mutant("of several statements one is grouped", ROWS, "' union all ') from unnest(events) u (events)) || ')'];", "' union all ') from unnest(events[1:1]) u (events)) || ')'];", f"{WELL_FORMED} {ALL}"),
    Mutant("general sums forget hours", SUMS, "concat_ws(' union all ', days, hours)", "concat_ws(' union all ', days)", f"{HOURLY} {TOTALS}"),
    Mutant("the end of a range is in it", "usage.range_sql(timestamptz, timestamptz)", "e.created_at < %L", "e.created_at <= %L", ALL),
    Mutant("of many cuts ends are in them", RANGES, "x.created_at < c.to_at", "x.created_at <= c.to_at", HOURLY),
    Mutant("gaps between hours are forgotten", RANGES, "coalesce(' and ' || late_where, '')", "''", ALL),
    Mutant("of sealed days today's definition", METRIC, "case when f.valid_to is null then '' else format(' and r.created_at < %L::timestamptz', f.valid_to) end", "''", "integration/test_metrics.py"),
    Mutant("others' events of a collection", RANGES, "format(of_one, 'l')", "''", ALL),
    Mutant("a sign is ignored", "usage.signed(integer, numeric)", "(- n)", "n", ALL),
    Mutant("in doubt the frontier holds", "usage.effective_frontier()", "else s.sealed_until", "else s.frontier", TRUST),
    Mutant("in doubt all days hold", "usage.rolled_until()", "usage.seal_day(s.sealed_until, s.time_zone)", "'infinity'::date", TRUST),
    Mutant("a TRUNCATE is no doubt", "usage.doubt()", "if exists (select from usage.truncate_marker)", "if false", CAPTURE),
    Mutant("a sequence left behind is no doubt", "usage.doubt()", "if isfinite(s.frontier)", "if false", "integration/test_restore.py"),
    Mutant("a sequence put right is no doubt", "usage.doubt()", "<> s.doubts then", "< s.doubts then", "integration/test_restore.py"),
    Mutant("a fingerprint is no doubt", "usage.doubt()", "return usage.fingerprint_doubt()", "return null", TRUST),
    Mutant("an ordinary table has no children", DOUBT, "c.relhassubclass or ", "", TRUST),
    Mutant("an ordinary table is logged", DOUBT, " or c.relpersistence <> 'p' as is_odd", " as is_odd", TRUST),
    Mutant("no partition came and went", DOUBT, " and not look.partitioned", "", TRUST),
    Mutant("any fingerprint will do", DOUBT, "if now_is = s.fingerprint and", "if", TRUST),
    Mutant("a tree is its root", FINGERPRINT, "if (select c.relkind = 'r' from pg_class c where c.oid = root)", "if true", TRUST),
    Mutant("a trigger that is off tells of a TRUNCATE", FINGERPRINT, " and t.tgenabled = enabled", "", TRUST),
    Mutant("a trigger that is off fires", FINGERPRINT, "t.tgenabled::text", "'A'", TRUST),
    Mutant("a collection has all titles", "usage.by_collection(timestamptz, timestamptz, uuid)", "c.id = by_collection.collection", "true", ONE),
    Mutant("a collection has all titles for AI", "usage.ai_drilldown(timestamptz, timestamptz, uuid)", "c.id = ai_drilldown.collection", "true", ONE),
    Mutant("days that moved are no doubt", "usage.doubt()", "known like '% moved %'", "false", "upgrades/test_time_zone_data.py"),
    # One collection, by the statement that is planned once: for types, and for keys of AI.
    Mutant("days of types add", PLANNED, "b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value\n                                  from unnest(days, day_signs) b (day, sign),\n                                       lateral (select x.* from usage.daily_collection_fact x", "b.sign * f.event_count, f.total_value, b.sign * f.secondary_value\n                                  from unnest(days, day_signs) b (day, sign),\n                                       lateral (select x.* from usage.daily_collection_fact x", ONE),
    Mutant("days of keys add", PLANNED, "b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value\n                                  from unnest(days, day_signs) b (day, sign),\n                                       lateral (select x.* from usage.daily_fact x", "b.sign * f.event_count, f.total_value, b.sign * f.secondary_value\n                                  from unnest(days, day_signs) b (day, sign),\n                                       lateral (select x.* from usage.daily_fact x", ONE),
    Mutant("hours of types add", PLANNED, "b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value\n                                  from unnest(hours, hour_signs) b (hour, sign),\n                                       lateral (select x.* from usage.hourly_collection_fact x", "b.sign * f.event_count, f.total_value, b.sign * f.secondary_value\n                                  from unnest(hours, hour_signs) b (hour, sign),\n                                       lateral (select x.* from usage.hourly_collection_fact x", ONE),
    Mutant("hours of keys add", PLANNED, "b.sign * f.event_count, b.sign * f.total_value, b.sign * f.secondary_value\n                                  from unnest(hours, hour_signs) b (hour, sign),\n                                       lateral (select x.* from usage.hourly_fact x", "b.sign * f.event_count, f.total_value, b.sign * f.secondary_value\n                                  from unnest(hours, hour_signs) b (hour, sign),\n                                       lateral (select x.* from usage.hourly_fact x", ONE),
    Mutant("a collection's months are nobody's", PLANNED, "from usage.monthly_collection_fact x where x.month = b.month and", "from usage.monthly_collection_fact x where x.month < b.month and", ONE),
    Mutant("an AI key's months are nobody's", PLANNED, "from usage.monthly_fact x where x.month = b.month and", "from usage.monthly_fact x where x.month < b.month and", ONE),
    Mutant("a closed tail is open", PLANNED, "case when p.tail_to is null then p.tail_from end", "p.tail_from", ONE),
    Mutant("an open tail is none", PLANNED, "case when p.tail_to is null then p.tail_from end", "null", ONE),
    Mutant("raw ranges of one collection have no cuts", PLANNED, "array[p.head_from, p.foot_from, p.tail_from] || p.cut_from", "array[p.head_from, p.foot_from, p.tail_from]", ONE),
    Mutant("raw ranges of one collection have no end", PLANNED, "array[p.head_to, p.foot_to, p.tail_to]", "array[p.head_to, null, p.tail_to]", ONE),
    Mutant("hours of one collection begin late", PLANNED, "generate_series(h.from_hour,", "generate_series(h.from_hour + interval '1 hour',", ONE),
    Mutant("hours of one collection end late", PLANNED, "h.to_hour - interval '1 hour'", "h.to_hour", ONE),
    Mutant("days of one collection end late", PLANNED, "r.to_day - r.from_day - 1", "r.to_day - r.from_day", ONE),
    Mutant("months of one collection end late", PLANNED, "(p.month_to - 1)::timestamp", "p.month_to::timestamp", ONE),
    Mutant("late changes of others are of one collection", PLANNED, "l.collection_id = collection and ", "", ONE, times=2),
    Mutant("gaps between one collection's hours are forgotten", PLANNED, "where l.created_at >= g.from_at and", "where false and", ONE, times=2),
    Mutant("late changes end late for one collection", PLANNED, "l.created_at < p.late_to", "true", ONE, times=2),
    Mutant("events of others are of one collection", PLANNED, "where e.collection_id = collection\n", "where true\n", ONE, times=2),
    Mutant("new events of others are of one collection", PLANNED, "where e.collection_id = collection and e.created_at >= open_from", "where e.created_at >= open_from", ONE, times=2),
    Mutant("a cut's end is in it for one collection", PLANNED, "e.created_at < c.to_at", "e.created_at <= c.to_at", ONE, times=2),
    Mutant("what is taken off one collection is added", PLANNED, "select c.sign, false as late", "select 1, false as late", ONE, times=2),
    Mutant("raw values of one collection have no sign", PLANNED, "usage.signed(e.sign, e.value)", "e.value", ONE, times=2),
    Mutant("one collection's second value is its first", PLANNED, "secondary_keys ->> r", "value_keys ->> r", ONE, times=2),
    Mutant("types of nothing are shown for one collection", PLANNED, "having sum(r.event_count) <> 0", "", ONE, times=2),
    Mutant("all of a collection is AI", PLANNED, "where r.resource_type = 'ai'", "where true", ONE),
    Mutant("two definitions are today's", KEYS, "not exists (select from usage.metric_history)" , "true", ONE),
    Mutant("a partial index has all", KEYS, "i.indpred is null", "true", ONE),
    Mutant("any index leads to a range", KEYS, "pg_get_indexdef(i.indexrelid, 2, false) = 'created_at'", "true", ONE),
    Mutant("any order leads to a collection", KEYS, "pg_get_indexdef(i.indexrelid, 1, false) = 'collection_id'", "true", ONE),
    Mutant("a block range index looks up", KEYS, "pg_index_column_has_property(i.indexrelid, 1, 'orderable')", "true", ONE),
    Mutant("a plan has all partitions", KEYS, "pg_relation_filenode(i.indexrelid) is not null", "true", ONE),
    Mutant("a plan reaches several machines", KEYS, " where not s.distributed", "", ONE),
    Mutant("any number is looked up", CHOICE, "if at_most >= 0 and", "if", ONE),
    Mutant("any months are looked up", CHOICE, "coalesce(p.month_to <= p.month_from + at_most * 28, true)", "true", ONE),
    Mutant("AI is asked for types", CHOICE, "usage.keys_of(collection, ai)", "usage.keys_of(collection, false)", ONE),
    Mutant("the other sections are swapped", CHOICE, "collection, not ai, ai, false, false)", "collection, ai, not ai, false, false)", ONE),
    # Marks: which, what they say, until when, and how windows are put together of them.
    Mutant("marks are made of sparse hours", "marks.unmarked", "h.event_count between %(worth)s and", "h.event_count between 0 and", f"{OF_MARKS}::test_the_newest_are_made_behind_the_frontier"),
    Mutant("marks are made of any number of events", "marks.unmarked", "and %(most)s) x", "and 100000) x", f"{OF_MARKS}::test_many_keys_or_events"),
    Mutant("marks are made below a seal", "marks.unmarked", ", s.sealed_until)", ")", f"{OF_MARKS}::test_below_a_seal"),
    Mutant("marks are made of hours that are not folded", "marks.unmarked", "x.ends_at <= s.frontier", "x.starts_at <= s.frontier", f"{OF_MARKS}::test_the_newest_are_made_behind_the_frontier"),
    Mutant("marks do not rest", "marks.unmarked", "x.unmarked_at < now() - make_interval(secs => %(rest)s)", "true", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("marks rest for ever", "marks.unmarked", "x.unmarked_at < now() - make_interval(secs => %(rest)s)", "false", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("marks are made of what changes unseen", "marks.unmarked", "s.capture_mode is distinct from 'lookback'", "true", f"{OF_MARKS}::test_lookback_has_none"),
    Mutant("marks are made with a doubt", "marks.unmarked", "usage.doubt() is null", "true", f"{OF_MARKS}::test_with_a_doubt_none_is_made_nor_read"),
    Mutant("old marks stay", "marks.delete_old", "m.at > %(from)s", "false and m.at > %(from)s", f"{OF_MARKS}::test_late_changes_let_go_of_them", times=2),
    Mutant("old ends of marks stay", "marks.delete_old", "m.at <= %(to)s", "m.at < %(to)s", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("marks do not mind how many keys there are", "marks.apart", "%(per_row)s * (", "0 * (", f"{OF_MARKS}::test_many_keys_or_events"),
    Mutant("one mark alone is worth it", "marks.apart", "2 * x.every", "0 * x.every", f"{OF_MARKS}::test_many_keys_or_events"),
    Mutant("halves are at the mark before", "marks.choose", "%(every)s / 2", "1", f"{OF_MARKS}::test_raw_events_are_few"),
    Mutant("marks take in their instant", "marks.sums", "m.number > x.slot", "m.number >= x.slot", OF_MARKS),
    Mutant("marks do not run", "marks.sums", "m.number > x.slot", "m.number = x.slot + 1", OF_MARKS),
    Mutant("marks take what is not folded", "marks.sums", "case when e.late then -e.sign else e.sign end", "e.sign", f"{OF_MARKS}::test_while_the_past_is_filled_in"),
    Mutant("nothing unmarked is set", "marks.set_marks", "unmarked_at = null", "unmarked_at = now()", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("sealed marks are verified", "marks.marked", "h.starts_at >= s.sealed_until", "true", f"{OF_MARKS}::test_below_a_seal"),
    Mutant("marks of the hours before are not verified", "marks.marked", "%(from)s::timestamptz - interval '6 hours'", "%(from)s::timestamptz", f"{OF_MARKS}::test_verification_looks_at_marks"),
    Mutant("marks too many are no difference", "marks.differences", "-f.event_count, -f.total_value", "0 * f.event_count, 0 * f.total_value", f"{OF_MARKS}::test_verification_looks_at_marks"),
    Mutant("changed hours keep their marks", SIX_HOURS, "marks = null,", "marks = s.marks,", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("changed marks have no time", SIX_HOURS, "case when s.marks is null then s.unmarked_at else now() end", "null", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("six hours forget what was there", SIX_HOURS, "s.event_count + excluded.event_count", "excluded.event_count", f"{OF_MARKS}::test_the_newest_are_made_behind_the_frontier"),
    Mutant("hours that are taken off count", SIX_HOURS, "-o.event_count", "o.event_count", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("six hours stay without hours", SIX_HOURS, "if tg_op = 'DELETE' then", "if false then", f"{OF_MARKS}::test_off_and_on"),
    Mutant("marks stay without hours", SIX_HOURS, "where m.at > g.starts_at", "where false and m.at > g.starts_at", f"{OF_MARKS}::test_off_and_on", times=2),
    Mutant("emptied hours keep their marks", SIX_HOURS, "truncate usage.six_hours, usage.mark_fact, usage.mark_total;", "", f"{OF_MARKS}::test_detached_and_truncated"),
    Mutant("what goes unseen keeps its marks", LET_GO, "s.marks is not null and", "false and", f"{OF_MARKS}::test_uncaptured_changes_within_an_hour"),
    Mutant("a repair lets go of all marks", LET_GO, "tg_table_name = 'verification'", "false", f"{OF_MARKS}::test_repaired_days_are_marked_anew"),
    Mutant("a repair keeps the six hours before", LET_GO, "from_at - interval '6 hours'", "from_at", f"{OF_MARKS}::test_repaired_days_are_marked_anew"),
    Mutant("marks beyond the frontier count", WITH_MARKS, " or ends > p.frontier", "", f"{OF_MARKS}::test_the_frontier_is_put_back"),
    Mutant("below a seal marks are cut raw", WITH_MARKS, "before < sealed or ", "", f"{OF_MARKS}::test_below_a_seal"),
    Mutant("before a midnight is a mark", WITH_MARKS, " or e = 1 and midnight", "", OF_MARKS),
    Mutant("behind a midnight is a mark", WITH_MARKS, "if e = 2 and midnight then", "if false then", OF_MARKS),
    Mutant("any end is a midnight", WITH_MARKS, "midnight := bounds[e] is distinct from since and bounds[e] is distinct from until;", "midnight := true;", f"{OF_MARKS}::test_raw_events_are_few"),
    Mutant("the farther mark", WITH_MARKS, "bounds[e] >= found.halves", "bounds[e] < found.halves", f"{OF_MARKS}::test_raw_events_are_few"),
    Mutant("whole hours are cut", WITH_MARKS, "by_hours[e] := usage.hour_of(bounds[e]) = bounds[e];", "by_hours[e] := false;", f"{OF_MARKS}::test_below_a_seal"),
    Mutant("whole hours begin their six", WITH_MARKS, "case when bounds[e] - starts <= ends - bounds[e] then starts else ends end", "starts", f"{OF_MARKS}::test_raw_events_are_few"),
    Mutant("a mark for both ends is none", WITH_MARKS, "if marks[2] is null or marks[1] = marks[2] and not by_hours[1] and not by_hours[2] then", "if marks[1] = marks[2] then", f"{OF_MARKS}::test_raw_events_are_few"),
    Mutant("marks are added at both ends", WITH_MARKS, "add := case e when 1 then -sign else sign end;", "add := sign;", OF_MARKS),
    Mutant("behind a bound is taken for before", WITH_MARKS, "if marks[e] > bounds[e] then", "if false then", OF_MARKS),
    Mutant("cuts of hours without marks are lost", WITH_MARKS, "if bounds[1] = from_at and from_cut is not null then", "if false then", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("last cuts of hours without marks are lost", WITH_MARKS, "if bounds[2] = to_at and to_cut is not null then", "if false then", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("hours without marks are lost", WITH_MARKS, "if bounds[1] < bounds[2] then", "if false then", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("gaps count with marks", WITH_LATE, "unnest(p.gap_from, p.gap_to)", "unnest('{}'::timestamptz[], '{}'::timestamptz[])", OF_MARKS),
    Mutant("late changes count as by hours", WITH_LATE, "(counted + cut) - (counted * cut)", "counted", OF_MARKS, times=2),
    Mutant("what is taken off raw has no late changes", WITH_LATE, "(counted + cut) - (counted * cut)", "counted - (counted * cut)", OF_MARKS, times=2),
    Mutant("marks by themselves are added", HOURS_SQL, "'select f.key_id, %1$s * f.event_count", "'select f.key_id, abs(%1$s) * f.event_count", OF_MARKS),
    Mutant("marks by themselves need hours", HOURS_SQL, "if p.hour_signs is null and p.marks is null then", "if p.hour_signs is null then", OF_MARKS),
    Mutant("marks of all are not added", ALL_PLANNED, "where m.sign > 0", "where false", OF_MARKS, times=2),
    Mutant("marks of all are not taken off", ALL_PLANNED, "where m.sign < 0", "where false", OF_MARKS, times=2),
    # Hours by type, and marks of them.
    Mutant("late changes count all of the time", WITH_LATE, "when p.late_from < p.late_to then", "when true then", OF_MARKS),
    Mutant("changed hours keep their marks by type", SIX_HOURS, "has_totals = null,", "has_totals = s.has_totals,", f"{OF_MARKS}::test_late_changes_let_go_of_them"),
    Mutant("marks by type stay without hours", SIX_HOURS, "m.at < g.starts_at + interval", "m.at < g.starts_at - interval", f"{OF_MARKS}::test_off_and_on"),
    Mutant("what goes unseen keeps its marks by type", LET_GO, "has_totals = null, ", "", f"{OF_MARKS}::test_uncaptured_changes_within_an_hour"),
    Mutant("marks alone are all marks", "marks.unmarked", "h.has_totals is null", "h.marks is null", f"{OF_MARKS}::test_a_release_that_knows_of_none_by_type"),
    Mutant("old marks by type stay", "marks.delete_old", "usage.mark_total m where m.at >", "usage.mark_total m where false and m.at >", f"{OF_MARKS}::test_a_release_that_knows_of_none_by_type"),
    Mutant("quarters of hours are always worth it", "marks.apart", "24 * %(per_row)s", "0 * %(per_row)s", f"{OF_MARKS}::test_many_types"),
    Mutant("marks by type do not mind how many types there are", "marks.apart", "%(per_row)s * x.types, x.event_count / 1000)", "x.event_count / 1000)", f"{OF_MARKS}::test_many_types"),
    Mutant("no quarters of hours", "marks.choose_totals", "interval '15 minutes'", "interval '1 hour'", OF_MARKS),
    Mutant("marks by type at quarters alone", "marks.choose_totals", "%% %(every)s = 0", "%% %(every)s < 0", f"{OF_MARKS}::test_raw_events_are_fewer_by_type"),
    Mutant("marks by type do not run", "marks.total_sums", "order by b.number", "order by b.number rows current row", OF_MARKS),
    Mutant("marks by type run on", "marks.total_sums", "partition by usage.hour_of(b.at), ", "partition by ", OF_MARKS),
    Mutant("marks by type take in their instant", "marks.total_sums", "x.number = b.number - 1", "x.number = b.number", OF_MARKS),
    Mutant("empty types have no marks", "marks.total_sums", "quote_nullable(x.resource_type) = quote_nullable(t.resource_type)", "x.resource_type = t.resource_type", OF_MARKS),
    Mutant("marks by type take what is not folded", "marks.slots", "case when e.late then -e.sign else e.sign end", "e.sign", f"{OF_MARKS}::test_while_the_past_is_filled_in"),
    Mutant("quarters without rows are not verified", "marks.marked", "select generate_series(h.starts_at,", "select generate_series(h.starts_at + interval '6 hours',", f"{OF_MARKS}::test_verification_looks_at_marks"),
    Mutant("marks by type too many are no difference", "marks.total_differences", "-m.event_count, -m.total_value", "0 * m.event_count, 0 * m.total_value", f"{OF_MARKS}::test_verification_looks_at_marks"),
    Mutant("hours that are taken off are added by type", HOURLY_TOTAL, "-o.event_count, -o.total_value", "o.event_count, o.total_value", f"{OF_HOURS}::test_whatever_changes_hours_changes_those_by_type"),
    Mutant("hours by type are replaced", HOURLY_TOTAL, "t.total_value + excluded.total_value", "excluded.total_value", f"{OF_HOURS}::test_whatever_changes_hours_changes_those_by_type"),
    Mutant("rejections of hours by type are replaced", HOURLY_TOTAL, "t.rejected_count + excluded.rejected_count", "excluded.rejected_count", f"{OF_HOURS}::test_whatever_changes_hours_changes_those_by_type"),
    Mutant("hours by type stay as nothing", HOURLY_TOTAL, "if tg_op = 'DELETE' then", "if false then", f"{OF_HOURS}::test_whatever_changes_hours_changes_those_by_type"),
    Mutant("hours by type outlive their hours", HOURLY_TOTAL, "truncate usage.hourly_total;", "", f"{OF_HOURS}::test_whatever_changes_hours_changes_those_by_type"),
    Mutant("repaired hours by type are replaced", "fold.add_total", "t.total_value + excluded.total_value", "excluded.total_value", f"{OF_HOURS}::test_both_an_hour_and_its_totals_are_wrong"),
    Mutant("repaired hours by type stay as nothing", "fold.sweep_total", "r.event_count = 0", "false", f"{OF_HOURS}::test_both_an_hour_and_its_totals_are_wrong"),
    Mutant("a stray hour by type is overlooked", "verify.hour_differences", "-t.event_count, -t.total_value", "0 * t.event_count, 0 * t.total_value", f"{OF_HOURS}::test_both_an_hour_and_its_totals_are_wrong"),
    Mutant("hours by type are read before they are filled", WITH_TOTALS, " or not s.has_hourly_total", "", f"{OF_HOURS}::test_what_a_snapshot_from_before_has"),
    Mutant("hours by type are read with a doubt", WITH_TOTALS, "p.reasons <> '{}' or ", "", f"{OF_MARKS}::test_uncaptured_changes_within_an_hour",
           equivalent="with a doubt only what is sealed is read by them, of which they are the record"),
    Mutant("the head is left out by type", WITH_TOTALS, "array[p.head_sign, p.foot_sign] ||", "array[null::integer, null] ||", OF_MARKS),
    Mutant("marks by type beyond the frontier count", WITH_TOTALS, " and hours[e] + interval '1 hour' <= p.frontier", "", f"{OF_MARKS}::test_the_frontier_is_put_back"),
    Mutant("marks by type that were let go of count", WITH_TOTALS, "(select h.has_totals from usage.six_hours h where h.starts_at = usage.six_hours_of(bounds[e]))", "true", OF_MARKS),
    Mutant("marks by type at quarters alone are read", WITH_TOTALS, "before := greatest(", "before := least(", f"{OF_MARKS}::test_raw_events_are_fewer_by_type"),
    Mutant("the farther mark by type", WITH_TOTALS, "after - bounds[e] < bounds[e] - before", "after - bounds[e] > bounds[e] - before", f"{OF_MARKS}::test_raw_events_are_fewer_by_type"),
    Mutant("before a midnight is a mark by type", WITH_TOTALS, "if before < day_from then", "if false then", f"{OF_MARKS}::test_midnights_that_are_no_quarters"),
    Mutant("behind a midnight is a mark by type", WITH_TOTALS, "if after > day_to then", "if false then", f"{OF_MARKS}::test_midnights_that_are_no_quarters"),
    Mutant("small ranges are taken apart", WITH_TOTALS, "< bounds[2] - bounds[1] end) then", "is not null end) then", f"{OF_MARKS}::test_raw_events_are_fewer_by_type"),
    Mutant("the end of an hour is its beginning", WITH_TOTALS, "then marks[2] else hours[2] end", "then hours[2] else hours[2] end", OF_MARKS),
    Mutant("hours between marks by type are left out", WITH_TOTALS, "if hours[1] < hours[2] then", "if false then", OF_MARKS),
    Mutant("marks by type are added at both ends", WITH_TOTALS, "add := case e when 1 then -was_signs[n] else was_signs[n] end;", "add := was_signs[n];", OF_MARKS),
    Mutant("behind a bound is taken for before by type", WITH_TOTALS, "case when marks[e] > bounds[e] then -add else add end", "add", OF_MARKS),
    Mutant("hours by type count in their own day", WITH_TOTALS, "p.hour_days := p.hour_days || day;", "p.hour_days := p.hour_days || usage.local_day(hours[1], p.zone);", OF_MARKS),
    Mutant("marks by type count in their own day", WITH_TOTALS, "p.mark_days := p.mark_days || day;", "p.mark_days := p.mark_days || usage.local_day(marks[e], p.zone);", OF_MARKS),
    Mutant("hours by type have no sign by themselves", TOTAL_SQL, "h.sign, h.from_hour", "1, h.from_hour", OF_MARKS),
    Mutant("marks by type have no sign by themselves", TOTAL_SQL, "m.sign, m.at", "1, m.at", OF_MARKS),
    Mutant("days by themselves end late", TOTAL_SQL, "t.day < %L::date", "t.day <= %L::date", OF_MARKS),
    Mutant("sums by type go by collections", SUMS, "when by_total then usage.with_totals", "when not by_total then usage.with_totals", OF_HOURS),
    Mutant("planned days end late", DAYS_PLANNED, "t.day < p.day_to", "t.day <= p.day_to", OF_MARKS, times=2),
    Mutant("planned hours end late", DAYS_PLANNED, "x.hour < h.to_hour", "x.hour <= h.to_hour", OF_MARKS, times=2),
    Mutant("planned hours have no sign", DAYS_PLANNED, "h.sign * t.total_value", "t.total_value", OF_MARKS, times=2),
    Mutant("planned marks have no sign", DAYS_PLANNED, "m.sign * t.total_value", "t.total_value", OF_MARKS, times=2),
    Mutant("known events of days are not taken off", DAYS_PLANNED, "c.sign = -1 and", "false and", f"{OF_ALL} {OF_MARKS}", times=4),
    Mutant("known events of days are added", DAYS_PLANNED, "c.sign = 1 and", "true and", f"{OF_ALL} {OF_MARKS}", times=4),
    Mutant("known events are of the first day", DAYS_PLANNED, "select last_day,", "select first_day,", f"{OF_ALL} {OF_MARKS}", times=4),
    Mutant("known events are all of one day", DAYS_PLANNED, "when last_day > first_day then", "when false then", f"{OF_ALL} {OF_MARKS}"),
    Mutant("edges of days are known", DAYS_PLANNED, "usage.are_well_formed(starts, ends)", "true", f"{OF_ALL} {WELL_FORMED}"),
    Mutant("edges of days are not read", DAYS_PLANNED, "not is_well", "false", f"{OF_ALL} {WELL_FORMED}"),
    Mutant("a closed tail of days is open", DAYS_PLANNED, "case when p.tail_to is null then p.tail_from end", "p.tail_from", OF_ALL),
    Mutant("an open tail of days is none", DAYS_PLANNED, "case when p.tail_to is null then p.tail_from end", "null", OF_ALL),
    Mutant("a closed tail of days is none", DAYS_PLANNED, "e.created_at < p.tail_to", "false", OF_ALL),
    Mutant("the end of time is not in a tail of days", DAYS_PLANNED, "e.created_at <= 'infinity'", "e.created_at < 'infinity'", f"{OF_QUARTERS} {OF_ALL}"),
    Mutant("late changes of days end late", DAYS_PLANNED, "l.created_at < p.late_to", "true", f"{OF_ALL} {OF_MARKS}"),
    Mutant("gaps between days are forgotten", DAYS_PLANNED, "where l.created_at >= g.from_at and", "where false and", f"{OF_ALL} {OF_MARKS}"),
    Mutant("late changes of days go with the rest", DAYS_PLANNED, " and not any_late then", " then", f"{OF_ALL} {OF_MARKS}"),
    Mutant("a tail of days goes with the rest", DAYS_PLANNED, " and p.tail_from is null and not", " and not", f"{OF_ALL} {OF_MARKS}"),
    Mutant("types of nothing have days", DAYS_PLANNED, "having sum(z.event_count) <> 0", "", f"{OF_ALL} {OF_MARKS}", times=2),
    Mutant("days of nothing but numbers are null", DAYS_PLANNED, "coalesce(sum(z.total_value), 0)", "sum(z.total_value)", f"{OF_ALL} {OF_MARKS}", times=2),
    Mutant("days have any order of types", DAYS_PLANNED, ', r.resource_type collate "C" nulls last', "", f"{OF_ALL} {OF_MARKS}", times=2),
    Mutant("days of one collection are of all", DAYS_CHOICE, "if daily_series.collection is null then", "if true then", ONE),
    Mutant("any number of events of days is planned once", DAYS_CHOICE, " and usage.expected_events(p) < 500000", "", OF_ALL),
    Mutant("hours by collection have days", DAYS_CHOICE, "(p.hour_days is not null or p.hour_signs is null) and ", "", f"{OF_HOURS} {HOURLY}"),
    # All collections.
    Mutant("quarters of all are left out", ALL_PLANNED, "f.quarter < quarters.quarter_to", "false", OF_QUARTERS, times=2),
    Mutant("months of all before quarters are left out", ALL_PLANNED, "f.month < quarters.quarter_from", "false", OF_ALL, times=2),
    Mutant("months of all behind quarters begin before them", ALL_PLANNED, "f.month >= quarters.quarter_to", "f.month >= p.month_from", OF_QUARTERS, times=2),
    Mutant("days of all on the left are added", ALL_PLANNED, "f.day >= case when p.left_sign > 0 then p.left_from end", "f.day >= p.left_from", OF_ALL, times=2),
    Mutant("days of all on the left are not taken off", ALL_PLANNED, "f.day >= case when p.left_sign < 0 then p.left_from end", "false", OF_ALL, times=2),
    Mutant("days of all on the right are added", ALL_PLANNED, "f.day >= case when p.right_sign > 0 then p.right_from end", "f.day >= p.right_from", OF_ALL, times=2),
    Mutant("days of all on the right are not taken off", ALL_PLANNED, "f.day >= case when p.right_sign < 0 then p.right_from end", "false", OF_ALL, times=2),
    Mutant("days of all end late", ALL_PLANNED, "f.day < p.right_to", "f.day <= p.right_to", OF_ALL, times=4),
    Mutant("hours of all end late", ALL_PLANNED, "x.hour < h.to_hour", "x.hour <= h.to_hour", OF_ALL, times=4),
    Mutant("hours of all are not added", ALL_PLANNED, "where h.sign > 0", "where false", OF_ALL, times=2),
    Mutant("hours of all are not taken off", ALL_PLANNED, "where h.sign < 0", "where false", OF_ALL, times=2),
    Mutant("the foot of all is the head", ALL_PLANNED, "array[p.head_sign, p.foot_sign]", "array[p.foot_sign, p.head_sign]", OF_ALL),
    Mutant("hours of all have no cuts", ALL_PLANNED, "|| p.cut_signs", "|| '{}'::integer[]", OF_ALL),
    Mutant("more ranges than there is room for", ALL_PLANNED, "coalesce(cardinality(minus_from), 0) <= 2 and ", "", f"{OF_ALL} {HOURLY}"),
    Mutant("more ranges to be added than there is room for", ALL_PLANNED, "coalesce(cardinality(plus_from), 0) <= 2 and ", "", f"{OF_ALL} {HOURLY}"),
    Mutant("edges of all are known", ALL_PLANNED, "usage.are_well_formed(starts, ends)", "true", f"{OF_ALL} {WELL_FORMED}"),
    Mutant("known edges of all are read again", ALL_PLANNED, "            signs := null;\n            starts := null;\n            ends := null;\n", "", OF_ALL),
    Mutant("unknown edges of all are known as well", ALL_PLANNED, "            plus_from := null;\n            minus_from := null;\n", "", OF_ALL),
    Mutant("the second range of all is left out", ALL_PLANNED, "created_at < plus_to[2]", "false", OF_ALL),
    Mutant("a closed tail of all is open", ALL_PLANNED, "case when p.tail_to is null then p.tail_from end", "p.tail_from", OF_ALL),
    Mutant("a closed tail of all is none", ALL_PLANNED, "if p.tail_to is not null then", "if false then", OF_ALL),
    Mutant("the end of time is not in an open tail", ALL_PLANNED, "e.created_at <= 'infinity'", "e.created_at < 'infinity'", OF_QUARTERS),
    Mutant("late changes of all end late", ALL_PLANNED, "l.created_at < p.late_to", "true", OF_ALL),
    Mutant("gaps between hours of all are forgotten", ALL_PLANNED, "where l.created_at >= g.from_at and", "where false and", OF_ALL),
    Mutant("late changes of all go with the rest", ALL_PLANNED, " and open_from is null and not any_late then", " and open_from is null then", OF_ALL),
    Mutant("an open tail of all goes with the rest", ALL_PLANNED, " and open_from is null and not any_late then", " and not any_late then", OF_ALL),
    Mutant("raw values of all have no sign", ALL_PLANNED, "usage.signed(e.sign, e.value)", "e.value", OF_ALL),
    Mutant("second values of all are first ones", ALL_PLANNED, "secondary_keys ->> r", "value_keys ->> r", OF_ALL, times=5),
    Mutant("types of nothing are shown for all", ALL_PLANNED, "having sum(k.event_count) <> 0", "", OF_ALL),
    Mutant("types of nothing in whole days are shown for all", ALL_PLANNED, "where r.event_count <> 0", "", OF_ALL),
    Mutant("sums of nothing are null for all", ALL_PLANNED, "coalesce(sum(k.total_value), 0)", "sum(k.total_value)", OF_ALL),
    Mutant("types of all have any order", ALL_PLANNED, ', r.resource_type collate "C" nulls last', "", OF_ALL, times=2),
    Mutant("any index leads to all", KEYS, "else pg_get_indexdef(i.indexrelid, 1, false) = 'created_at'", "else true", OF_ALL),
    Mutant("a collection's index leads to all", KEYS, "case when of_one then", "case when true then", OF_ALL),
    Mutant("any number of events is planned once", ALL_CHOICE, "if usage.expected_events(p) < 500000 then", "if true then", OF_ALL),
    Mutant("one collection is all", ALL_CHOICE, "if by_collection.collection is null then", "if true then", ONE),
    Mutant("cuts are not expected", EXPECTED, "array[p.head_from, p.foot_from, p.tail_from]", "array[null, null, p.tail_from]", OF_ALL),
    Mutant("the future is expected", EXPECTED, "least(x.to_at, now())", "x.to_at", OF_ALL),
    Mutant("all events are as many as none", EXPECTED, "        return seconds;\n", "        return 0;\n", OF_ALL),
    Mutant("a week is a day", EXPECTED, "last - 7", "last - 1", OF_ALL),
    # Days of other time zones.
    Mutant("a changed clock cuts one hour", ZONES, "case when m.changed then m.before else m.at end", "m.at", f"{BOUNDARIES}::test_a_clock_set_back_past_midnight"),
    Mutant("hours that a midnight cuts count whole", ZONES, "format('f.hour <> all (%L::timestamptz[])', cut_hours)", "null", HOURLY),
    Mutant("hours by type that a midnight cuts count whole", ZONES, "format(' and t.hour <> all (%L::timestamptz[])', cut_hours)", "''", HOURLY),
    Mutant("late changes in cut hours count twice", ZONES, "p.gap_from := cuts_from;", "", HOURLY),
    Mutant("the frontier's hour is cut above it", ZONES, "least(c.to_at, top)", "c.to_at", f"{BOUNDARIES}::test_a_midnight_and_a_frontier_cut_the_same_hour"),
    Mutant("the last hour is whole", ZONES, "case when bound < top then usage.hours_to(bound)", "case when bound < top then usage.hours_from(bound)", HOURLY),
    Mutant("late changes above the frontier count in zones", ZONES, "p.late_to := least(last_hour, top);", "p.late_to := last_hour;", f"{BOUNDARIES}::test_late_changes_between_the_two_frontiers"),
    Mutant("hours by type are read before they are there", ZONES, "if collection is null and s.has_hourly_total then", "if collection is null then", f"{OF_HOURS}::test_what_a_snapshot_from_before_has"),
    Mutant("one collection has the hours of all", ZONES, "if collection is null and s.has_hourly_total then", "if s.has_hourly_total then", HOURLY),
    Mutant("any midnight is a mark", ZONES, " and exists (select from usage.six_hours h where h.starts_at = usage.six_hours_of(m.at) and h.has_totals)", "", HOURLY),
    Mutant("hours with a midnight count where they begin", ZONES, "interval '59 minutes 59.999999 seconds'", "interval '0'", f"{OF_MARKS}::test_days_of_other_zones"),
    Mutant("what lies before a midnight stays behind it", ZONES, "from unnest($2) m (at),", "from unnest($2) m (at) where false union all select null, null, null, null from unnest($2) m (at),", f"{OF_MARKS}::test_days_of_other_zones"),
    Mutant("ends of windows are raw", ZONES, "and e.to_at <= h.hour + interval '1 hour'", "and false", f"{OF_MARKS}::test_sealed_days_of_other_zones"),
    Mutant("ends of windows are read twice", ZONES, "since <> all (coalesce(ends_from, '{}'))", "true", f"{OF_MARKS}::test_days_of_other_zones"),
]  # fmt: skip


def chosen() -> Mutant | None:
    """Return the mutant that this process is to run the tests with."""
    name = os.environ.get(ENVIRONMENT)
    return next(mutant for mutant in MUTANTS if mutant.name == name) if name else None


def break_statement(mutant: Mutant) -> None:
    """Change a statement in memory, if it is one that the mutant changes."""
    if "(" not in mutant.place:
        module, block = mutant.place.split(".")
        statements: dict[str, Any] = importlib.import_module(f"aggregator.{module}").SQL
        statements[block] = mutant.mutated(statements[block])


def break_function(mutant: Mutant, connection: psycopg.Connection[Any]) -> None:
    """Change a function of a database, if it is one that the mutant changes."""
    if "(" in mutant.place:
        row = connection.execute("select pg_get_functiondef(%s::regprocedure)", (mutant.place,)).fetchone()
        assert row is not None
        connection.execute(mutant.mutated(row[0]).encode())
