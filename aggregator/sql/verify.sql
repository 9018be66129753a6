-- Run-time SQL of verify: both sides of the identity, by key, in one snapshot.

-- next_bucket --
-- The first day from a given one on, below the frontier, that has rollup rows, events or late changes; null: none.
select least(
           (select min(d.day) from usage.daily_fact d where d.day >= %(day)s::date),
           (select min(c.day) from usage.daily_collection_fact c where c.day >= %(day)s::date),
           (select min(t.day) from usage.daily_total t where t.day >= %(day)s::date),
           (select usage.local_day(min(h.hour), s.time_zone) from usage.hourly_fact h where h.hour >= usage.day_start(%(day)s::date, s.time_zone)),
           (select usage.local_day(min(h.hour), s.time_zone) from usage.hourly_collection_fact h where h.hour >= usage.day_start(%(day)s::date, s.time_zone)),
           (select usage.local_day(min(h.hour), s.time_zone) from usage.hourly_total h where h.hour >= usage.day_start(%(day)s::date, s.time_zone)),
           (select greatest(min(m.month), %(day)s::date) from usage.monthly_fact m
             where m.month >= usage.month_of(%(day)s::date) having count(*) > 0),
           (select greatest(min(m.month), %(day)s::date) from usage.monthly_collection_fact m
             where m.month >= usage.month_of(%(day)s::date) having count(*) > 0),
           -- One that began before is compared with the first range that lies in it.
           (select min(q.quarter) from usage.quarterly_collection_fact q where q.quarter >= %(day)s::date),
           (select usage.local_day(l.created_at, s.time_zone) from usage.late_change l
             where l.created_at >= usage.day_start(%(day)s::date, s.time_zone) and l.created_at < s.frontier
             order by l.created_at limit 1),
           usage.local_day(usage.next_event(usage.day_start(%(day)s::date, s.time_zone), s.frontier), s.time_zone))::text
  from usage.state s

-- chunk_end --
-- At most the rest of the month, and whole days of about N events (one day at least). Infinity: with the last bucket.
select least(usage.next_month(usage.month_of(%(day)s::date)), %(until)s::date,
             (select greatest(usage.local_day(n.created_at, s.time_zone), usage.next_day(%(day)s::date))
                from usage.nth_event(usage.day_start(%(day)s::date, s.time_zone), null, %(n)s) n (created_at)
               where n.created_at is not null))::text,
       %(day)s::date < %(until)s::date or %(until)s::date = 'infinity'
  from usage.state s

-- look --
-- Begins by now, is in order, begins above the seal; ends below it; whether there is doubt; where an interrupted repair of all days goes on,
-- if nothing was noticed since.
select x.since < usage.next_day(usage.local_day(now(), x.time_zone)), coalesce(x.since < %(until)s::date, true), x.since >= x.sealed_day,
       coalesce(%(until)s::date <= x.sealed_day, false),
       usage.doubt() is not null,
       case when not x.trusted and isfinite(x.repair_day) and usage.fingerprint_doubt() is null and usage.moved_day(false) is null
                 and not exists (select from usage.truncate_marker) then x.repair_day end::text,
       x.repair_run, x.seal_moved
  from (select coalesce(%(since)s::date, usage.local_day(s.sealed_until, s.time_zone)) as since,
               usage.local_day(s.sealed_until, s.time_zone) as sealed_day, s.time_zone, s.trusted, s.repair_day, s.repair_run,
               isfinite(s.sealed_until) and usage.day_start(usage.local_day(s.sealed_until, s.time_zone), s.time_zone) <> s.sealed_until as seal_moved
          from usage.state s) x

-- repaired_until --
-- Null stays null: then something happened since the repair began, and it has to begin anew. So does what another
-- repair set: it began after something that this one may not have seen.
update usage.state set repair_day = %(to)s::date where repair_day is not null and repair_run = %(run)s

-- distrust --
-- As fold's, but a repair that is under way goes on, unless it has been through these days: the rest is known to differ.
update usage.state
   set trusted = false, distrust_reason = coalesce(distrust_reason, %(reason)s), repair_day = null
 where trusted or repair_day > %(from)s::date

-- expected --
-- What the daily rollup of a range is to be: the raw events, less the late changes that are not folded yet.
    select usage.local_day(e.created_at, s.time_zone) as day, {hour} as hour,
           e.collection_id, e.resource_type, e.job_type, e.model_level,
           sum(net.sign) as event_count,
           coalesce(sum(usage.signed(net.sign, e.value)), 0) as total_value,
           coalesce(sum(usage.signed(net.sign, e.secondary)), 0) as secondary_value,
           coalesce(sum(net.sign) filter (where e.rejected), 0) as rejected_count
      from usage.state s,
           {measured} e,
           lateral (select case when e.late then -e.sign else e.sign end) as net (sign)
     group by 1, 2, 3, 4, 5, 6

-- expected_distributed --
-- The same where Citus distributes the source, whose late changes nobody notes.
    select d.day, null::timestamptz as hour, d.collection_id, d.resource_type, d.job_type, d.model_level,
           d.event_count, d.total_value, d.secondary_value, d.rejected_count
      from usage.distributed_sums(%(start)s::timestamptz, %(end)s::timestamptz) d

-- differences --
-- What has to be added to each rollup row of the days [from, to), or up to the last bucket where to is infinity, to make
-- it right. Expected are the raw events below the frontier, less the late changes that are not folded yet. A month is
-- the sum of its days, those outside the range as they are; a quarter, from the one of a given day on, that of its months, all as
-- they are, for what is added to these is added to it. Rows of a month that is no first day are taken along. With
-- the hourly rollup the events are those of whole hours, so some are of the days beside.
-- Follows: insert into pg_temp.delta with expected as materialized (…)
, daily_difference as materialized (
    select x.day, x.collection_id, x.resource_type, x.job_type, x.model_level,
           sum(x.event_count) as event_count, sum(x.total_value) as total_value,
           sum(x.secondary_value) as secondary_value, sum(x.rejected_count) as rejected_count
      from (select e.day, e.collection_id, e.resource_type, e.job_type, e.model_level,
                   e.event_count, e.total_value, e.secondary_value, e.rejected_count
              from expected e
               where e.day >= %(from)s::date and (e.day < %(to)s::date or %(to)s::date = 'infinity')
            union all
            select d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
                   -d.event_count, -d.total_value, -d.secondary_value, -d.rejected_count
              from usage.daily d
             where d.day >= %(from)s::date and (d.day < %(to)s::date or %(to)s::date = 'infinity')) x
     group by 1, 2, 3, 4, 5
    having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
), days_of_month as (
    select usage.month_of(d.day) as month, d.collection_id, d.resource_type, d.job_type, d.model_level,
           d.event_count, d.total_value, d.secondary_value, d.rejected_count
      from daily_difference d
    union all
    select usage.month_of(d.day), d.collection_id, d.resource_type, d.job_type, d.model_level,
           d.event_count, d.total_value, d.secondary_value, d.rejected_count
      from usage.daily d
     where d.day >= usage.month_of(%(from)s::date)
       and (d.day < usage.next_month(usage.month_of(%(from)s::date)) or %(to)s::date = 'infinity')
)
select 'daily', d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
       d.event_count::bigint, d.total_value, d.secondary_value, d.rejected_count::bigint, %(reason)s, null::timestamptz
  from daily_difference d
union all
select 'daily_collection', x.day, x.collection_id, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, null::timestamptz
  from (select e.day, e.collection_id, e.resource_type, e.event_count, e.total_value, e.secondary_value, e.rejected_count
          from expected e
           where e.day >= %(from)s::date and (e.day < %(to)s::date or %(to)s::date = 'infinity')
        union all
        select c.day, c.collection_id, c.resource_type, -c.event_count, -c.total_value, -c.secondary_value, -c.rejected_count
          from usage.daily_collection c
         where c.day >= %(from)s::date and (c.day < %(to)s::date or %(to)s::date = 'infinity')) x
 group by x.day, x.collection_id, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'daily_total', x.day, null, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, null::timestamptz
  from (select e.day, e.resource_type, e.event_count, e.total_value, e.secondary_value, e.rejected_count
          from expected e
           where e.day >= %(from)s::date and (e.day < %(to)s::date or %(to)s::date = 'infinity')
        union all
        select t.day, t.resource_type, -t.event_count, -t.total_value, -t.secondary_value, -t.rejected_count
          from usage.daily_total t
         where t.day >= %(from)s::date and (t.day < %(to)s::date or %(to)s::date = 'infinity')) x
 group by x.day, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'monthly', x.month, x.collection_id, x.resource_type, x.job_type, x.model_level,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, null::timestamptz
  from (select d.month, d.collection_id, d.resource_type, d.job_type, d.model_level, d.event_count, d.total_value, d.secondary_value, d.rejected_count
          from days_of_month d
        union all
        select m.month, m.collection_id, m.resource_type, m.job_type, m.model_level, -m.event_count, -m.total_value, -m.secondary_value, -m.rejected_count
          from usage.monthly m
         where m.month >= usage.month_of(%(from)s::date)
           and (m.month < usage.next_month(usage.month_of(%(from)s::date)) or %(to)s::date = 'infinity')) x
 group by x.month, x.collection_id, x.resource_type, x.job_type, x.model_level
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'monthly_collection', x.month, x.collection_id, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, null::timestamptz
  from (select d.month, d.collection_id, d.resource_type, d.event_count, d.total_value, d.secondary_value, d.rejected_count
          from days_of_month d
        union all
        select m.month, m.collection_id, m.resource_type, -m.event_count, -m.total_value, -m.secondary_value, -m.rejected_count
          from usage.monthly_collection m
         where m.month >= usage.month_of(%(from)s::date)
           and (m.month < usage.next_month(usage.month_of(%(from)s::date)) or %(to)s::date = 'infinity')) x
 group by x.month, x.collection_id, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'quarterly_collection', x.quarter, x.collection_id, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, null::timestamptz
  from (select usage.quarter_of(m.month) as quarter, m.collection_id, m.resource_type, m.event_count, m.total_value, m.secondary_value, m.rejected_count
          from usage.monthly_collection m
         where m.month >= %(quarter)s::date and (m.month < usage.next_quarter(usage.quarter_of(%(from)s::date)) or %(to)s::date = 'infinity')
        union all
        select q.quarter, q.collection_id, q.resource_type, -q.event_count, -q.total_value, -q.secondary_value, -q.rejected_count
          from usage.quarterly_collection q
         where q.quarter >= %(quarter)s::date and (q.quarter < usage.next_quarter(usage.quarter_of(%(from)s::date)) or %(to)s::date = 'infinity')) x
 group by x.quarter, x.collection_id, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
{hours}

-- hour_differences --
-- More of them: what has to be added to each row of the hourly rollup. Hours that a bound of the days cuts are compared whole. Those
-- by type are the sums of those by collection, all as they are, for what is added to these is added to them.
union all
select 'hourly', usage.local_day(x.hour, s.time_zone), x.collection_id, x.resource_type, x.job_type, x.model_level,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, x.hour
  from usage.state s,
       (select e.hour, e.collection_id, e.resource_type, e.job_type, e.model_level, e.event_count, e.total_value, e.secondary_value, e.rejected_count
          from expected e
         where e.hour >= %(hour_from)s::timestamptz
        union all
        select h.hour, h.collection_id, h.resource_type, h.job_type, h.model_level, -h.event_count, -h.total_value, -h.secondary_value, -h.rejected_count
          from usage.hourly h
         where h.hour >= %(hour_from)s::timestamptz and h.hour < %(hour_to)s::timestamptz) x
 group by s.time_zone, x.hour, x.collection_id, x.resource_type, x.job_type, x.model_level
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'hourly_collection', usage.local_day(x.hour, s.time_zone), x.collection_id, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, x.hour
  from usage.state s,
       (select e.hour, e.collection_id, e.resource_type, e.event_count, e.total_value, e.secondary_value, e.rejected_count
          from expected e
         where e.hour >= %(hour_from)s::timestamptz
        union all
        select h.hour, h.collection_id, h.resource_type, -h.event_count, -h.total_value, -h.secondary_value, -h.rejected_count
          from usage.hourly_collection h
         where h.hour >= %(hour_from)s::timestamptz and h.hour < %(hour_to)s::timestamptz) x
 group by s.time_zone, x.hour, x.collection_id, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0
union all
select 'hourly_total', usage.local_day(x.hour, s.time_zone), null, x.resource_type, null, null,
       sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count)::bigint, %(reason)s, x.hour
  from usage.state s,
       (select h.hour, h.resource_type, h.event_count, h.total_value, h.secondary_value, h.rejected_count
          from usage.hourly_collection h
         where h.hour >= %(hour_from)s::timestamptz and h.hour < %(hour_to)s::timestamptz
        union all
        select t.hour, t.resource_type, -t.event_count, -t.total_value, -t.secondary_value, -t.rejected_count
          from usage.hourly_total t
         where t.hour >= %(hour_from)s::timestamptz and t.hour < %(hour_to)s::timestamptz) x
 group by s.time_zone, x.hour, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0 or sum(x.rejected_count) <> 0

-- bounds --
-- The first quarter to compare: that of the range, unless the range before was in it. The instants of a range of days, as far
-- as it lies below the frontier; the hours that it touches, as far as there are any and their raw events (null: none), and the
-- instants of those.
select (case when usage.quarter_of(%(before)s::date) = usage.quarter_of(%(from)s::date) then usage.next_quarter(usage.quarter_of(%(from)s::date))
             else usage.quarter_of(%(from)s::date) end)::text,
       x.start::text, x.stop::text, x.hour_from::text, x.hour_to::text,
       coalesce(least(x.start, x.hour_from), x.start)::text, coalesce(least(greatest(x.stop, x.hour_to), x.frontier), x.stop)::text
  from (select b.start, b.stop, b.frontier, h.hour_from,
               case when h.hour_from is not null and %(to)s::date = 'infinity' then 'infinity'
                    when h.hour_from is not null then usage.hours_from(b.stop) end as hour_to
          from (select least(usage.day_start(%(from)s::date, s.time_zone), s.frontier) as start,
                       case when %(to)s::date = 'infinity' then s.frontier
                            else least(usage.day_start(%(to)s::date, s.time_zone), s.frontier) end as stop,
                       s.frontier, s.hourly_since, s.sealed_until
                  from usage.state s) b,
               lateral (select case when b.hourly_since is not null
                                    then greatest(usage.hours_to(b.start), usage.hours_from(b.hourly_since), usage.hours_from(b.sealed_until)) end as hour_from) h) x

-- forget_leaves --
-- Late changes of a partition that is gone: from here on the rollups count with them, and without its raw events.
update usage.late_change l
   set leaf = null
  from usage.state s
 where l.created_at >= %(start)s::timestamptz and l.created_at < %(end)s::timestamptz and l.leaf is not null
   and to_regclass(s.source)::oid <> l.leaf
   and not exists (select from pg_partition_tree(to_regclass(s.source)) t where t.relid::oid = l.leaf)

-- note_days --
-- When the days [from, to) begin that were just repaired, by the time zone data of this session.
with noted as (
    insert into usage.rolled_day as r (day, starts_at, ends_at)
    select d.day, usage.day_start(d.day, s.time_zone), usage.day_start(usage.next_day(d.day), s.time_zone)
      from usage.state s,
           (select distinct t.day from usage.daily_total t
             where t.day >= %(from)s::date and (t.day < %(to)s::date or %(to)s::date = 'infinity') and isfinite(t.day)) d
     where s.time_zone <> 'UTC'
        on conflict (day) do update set starts_at = excluded.starts_at, ends_at = excluded.ends_at
     where (r.starts_at, r.ends_at) is distinct from (excluded.starts_at, excluded.ends_at)
    returning 1)
update usage.state set rolled_days = rolled_days + 1 where exists (select from noted)

-- forget_days --
-- Days that have no rows any more, above the seal.
delete from usage.rolled_day r
 using usage.state s
 where r.starts_at >= s.sealed_until and not exists (select from usage.daily_total t where t.day = r.day)

-- some_differences --
select x.rollup, coalesce(x.hour::text, x.bucket::text), x.collection_id::text, x.resource_type, x.job_type, x.model_level,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 order by x.bucket, x.rollup, x.hour, x.collection_id nulls last, x.resource_type, x.job_type, x.model_level
 limit %(limit)s

-- count_differences --
select count(*) from pg_temp.delta

-- record --
insert into usage.verification (day_from, day_to, differences, repaired)
values (%(from)s::date, %(to)s::date, %(differences)s, %(repaired)s)

-- uncaptured --
select usage.uncaptured()

-- know --
-- From here on the fingerprint tells every further gap; trust stays off until all days are verified.
update usage.state
   set fingerprint = usage.fingerprint(), storage = usage.storage(), source_oid = to_regclass(source)::oid,
       trusted = false, distrust_reason = coalesce(distrust_reason, %(reason)s), repair_day = '-infinity',
       repair_run = repair_run + 1
returning distrust_reason, repair_run

-- believe --
-- Trust again, unless something happened meanwhile (it left another reason, or another fingerprint), or events lie in
-- years that the zone has no day intervals for.
update usage.state
   set trusted = true, distrust_reason = null, repair_day = null
 where distrust_reason = %(reason)s
   and repair_day is not null
   and repair_run = %(run)s
   and usage.fingerprint_doubt() is null
   and usage.moved_day(false) is null
   and usage.next_event('-infinity', zone_valid_from) is null
