-- Run-time SQL of the nightly run. Ranges are [from, to).

-- analyze --
select usage.analyze_changed()

-- prune --
-- Histories older than a setting; the last verification of all is kept.
with runs as (
    delete from usage.refresh_run where started_at < now() - make_interval(days => %(days)s) returning id
), verifications as (
    delete from usage.verification
     where verified_at < now() - make_interval(days => %(days)s)
       and id <> (select max(v.id) from usage.verification v)
    returning id
), restatements as (
    delete from usage.restatement where restated_at < now() - make_interval(days => %(days)s) returning id
)
select (select count(*) from runs) + (select count(*) from verifications) + (select count(*) from restatements)

-- random_day --
-- A day below the recent ones, and not sealed, that has rollup rows: any of them with the same chance.
select t.day::text, usage.next_day(t.day)::text
  from (select distinct d.day from usage.daily_total d, usage.state s
         where d.day >= usage.local_day(s.sealed_until, s.time_zone) and d.day < %(before)s::date and isfinite(d.day)) t
 order by random()
 limit 1

-- recent_days --
-- The days that the nightly run verifies: [from, to), today included, as far as it is not sealed.
select greatest(usage.local_day(now(), s.time_zone) - %(days)s, usage.local_day(s.sealed_until, s.time_zone))::text,
       usage.next_day(usage.local_day(now(), s.time_zone))::text
  from usage.state s
