-- Run-time SQL of status.

-- status --
select s.source, s.capture_mode, s.lookback_days, s.title_source, s.time_zone, s.frontier::text, s.sealed_until::text,
       date_trunc('second', f.lag)::text, extract(epoch from f.lag)::float8, f.reason,
       case when s.frontier is not null then usage.tail_events(%(tail)s) end,
       f.pending_changes, f.last_refreshed::text, extract(epoch from f.last_refreshed)::float8,
       f.last_verified::text, extract(epoch from f.last_verified)::float8,
       (select r.status || coalesce(': ' || r.error, '') || coalesce(', left raw because of ' || r.waited_for, '')
          from usage.refresh_run r order by r.id desc limit 1),
       (select j.finished_at::text from usage.job j where j.name = 'nightly'),
       (select r.error || ' (' || r.finished_at::text || ')' from usage.refresh_run r where r.error is not null order by r.id desc limit 1),
       (select min(v.refreshed_at)::text from usage.view_refresh v having bool_and(v.refreshed_at is not null)),
       -- Counting many millions takes seconds, and monitoring asks often: they are estimated.
       (select case when c.reltuples > 1000000 then c.reltuples::bigint else (select count(*) from usage.daily_fact) end
          from pg_class c where c.oid = 'usage.daily_fact'::regclass),
       (select sum(d.rejected_count)::bigint from usage.daily_total d),
       coalesce((select sum(t.rejected_count) / nullif(sum(t.event_count), 0) from usage.daily_total t
                  where t.day between usage.local_day(now(), s.time_zone) - 30 and usage.local_day(now(), s.time_zone)), 0)::float8,
       pg_size_pretty((select sum(pg_total_relation_size(r::regclass))
                         from unnest(array['usage.daily_fact', 'usage.daily_collection_fact', 'usage.daily_total',
                                           'usage.monthly_fact', 'usage.monthly_collection_fact', 'usage.quarterly_collection_fact',
                                           'usage.hourly_fact', 'usage.hourly_collection_fact', 'usage.hourly_total', 'usage.six_hours', 'usage.mark_fact',
                                           'usage.mark_total', 'usage.key']) r))
  from usage.state s, usage.freshness f

-- recent_events --
-- The last 30 whole days that are rolled up, [from, to), and how many events they have.
select (d.last_day - 30)::text, d.last_day::text,
       (select coalesce(sum(t.event_count), 0)::bigint from usage.daily_total t where t.day >= d.last_day - 30 and t.day < d.last_day)
  from usage.state s,
       lateral (select least(usage.local_day(now(), s.time_zone), usage.local_day(s.frontier, s.time_zone)) as last_day) d
 where isfinite(d.last_day)

-- recent_rows --
-- The planner's idea of how many rollup rows that is: counting them would take longer than all the rest.
explain (format json) select from usage.daily_fact f where f.day >= %(from)s::date and f.day < %(to)s::date

-- newest_keys --
-- What tells the newest keys of a type apart, for the type that has most of them: new ones are what a rollup grows by.
select k.resource_type, count(*), count(distinct k.collection_id), count(distinct k.job_type), count(distinct k.model_level)
  from usage.key k
 where k.id > (select max(n.id) from usage.key n) - %(keys)s and (k.job_type is not null or k.model_level is not null or k.collection_id is not null)
 group by k.resource_type
 order by 2 desc, 1
 limit 1

-- hourly --
-- A sample only where the rollup is off.
select s.hourly_since::text, g.events_per_day, g.events, g.rows, g.whole
  from usage.state s
  left join lateral usage.hourly_gain(case when s.hourly_since is null then %(hours)s::integer end, %(events)s::integer) g on s.hourly_since is null

-- problems --
select p.code, p.problem, p.remedy
  from usage.problems(make_interval(secs => %(max_lag)s), make_interval(secs => 86400 * %(max_verification_age)s::float8),
                      %(max_pending_changes)s, %(max_rejected_share)s::numeric, make_interval(secs => %(max_frontier_ahead)s)) p

-- at_work --
select j.name || ': ' || j.holder || ', since ' || date_trunc('second', j.claimed_at)::text
  from usage.job j
 where j.holder is not null and j.lease_until >= clock_timestamp()
 order by j.name

-- save_limits --
update usage.health_limit
   set max_lag = make_interval(secs => %(max_lag)s),
       max_verification_age = make_interval(secs => 86400 * %(max_verification_age)s::float8),
       max_pending_changes = %(max_pending_changes)s, max_rejected_share = %(max_rejected_share)s::numeric,
       max_frontier_ahead = make_interval(secs => %(max_frontier_ahead)s)
