-- Run-time SQL of marks: which six hours are to have some, where they lie, and their sums, by collection and by type alone. Instants
-- travel as text.

-- unmarked --
-- The newest ones that are folded, unsealed, neither sparse nor more than a transaction should read, and were not changed just now.
-- No row: none, or there is doubt.
select x.starts_at::text, x.ends_at::text
  from usage.state s,
       lateral (select h.starts_at, h.starts_at + interval '6 hours' as ends_at, h.unmarked_at
                  from usage.six_hours h
                 where h.has_totals is null and h.event_count between %(worth)s and %(most)s) x
 where x.starts_at >= greatest(usage.hours_from(s.hourly_since), s.sealed_until)
   and x.ends_at <= s.frontier
   and coalesce(x.unmarked_at < now() - make_interval(secs => %(rest)s), true)
   and s.capture_mode is distinct from 'lookback' and not s.distributed
   and usage.doubt() is null
 order by x.starts_at desc
 limit 1

-- delete_old --
with totals as (delete from usage.mark_total m where m.at > %(from)s::timestamptz and m.at < %(to)s::timestamptz)
delete from usage.mark_fact m where m.at > %(from)s::timestamptz and m.at <= %(to)s::timestamptz

-- apart --
-- Events from one mark to the next, so many at least for each of its rows; null: there would be no more than one. The same of marks
-- by type; null: not even those of the quarters of hours would pay.
select case when x.event_count >= 2 * x.every then x.every end,
       case when x.event_count >= 24 * %(per_row)s * x.types then greatest(%(every_total)s, %(per_row)s * x.types, x.event_count / 1000) end
  from (select h.event_count, greatest(%(every)s, %(per_row)s * (select count(distinct f.key_id) from usage.hourly_collection_fact f
                                                                  where f.hour >= h.starts_at and f.hour < h.starts_at + interval '6 hours')) as every,
               (select count(distinct row(t.resource_type)) from usage.hourly_total t
                 where t.hour >= h.starts_at and t.hour < h.starts_at + interval '6 hours') as types
          from usage.six_hours h
         where h.starts_at = %(from)s::timestamptz) x

-- choose --
-- Each N-th event's instant, and the end; and of each the instant of the event that is half-way from the one before, if there is one.
with event as materialized (
    select x.created_at, x.number %% %(every)s = 0 as is_mark
      from (select e.created_at, row_number() over (order by e.created_at) as number
              from usage.event() e
             where e.created_at > %(from)s::timestamptz and e.created_at < %(to)s::timestamptz) x
     where x.number %% %(every)s in (0, %(every)s / 2)
), mark as (
    select x.at, lag(x.at, 1, %(from)s::timestamptz) over (order by x.at) as before
      from (select e.created_at as at from event e where e.is_mark
             union
            select %(to)s::timestamptz) x
)
select array_agg(m.at order by m.at)::text,
       array_agg(coalesce((select min(e.created_at) from event e where not e.is_mark and e.created_at >= m.before and e.created_at < m.at), m.at)
                 order by m.at)::text
  from mark m

-- choose_totals --
-- Whole hours and their quarters, and each N-th event's instant.
select array_agg(x.at order by x.at)::text
  from (select e.created_at as at
          from (select e.created_at, row_number() over (order by e.created_at) as number
                  from usage.event() e
                 where e.created_at > %(from)s::timestamptz and e.created_at < %(to)s::timestamptz) e
         where e.number %% %(every)s = 0
         union
        select generate_series(%(from)s::timestamptz, %(to)s::timestamptz, interval '15 minutes')) x

-- sums --
-- What folds have put into hours before each mark: raw events, less the late changes not folded yet. Keys are known, as hours have them.
select m.at, k.id as key_id, sum(x.event_count)::bigint as event_count, sum(x.total_value) as total_value, sum(x.secondary_value) as secondary_value
  from (select width_bucket(e.created_at, {marks}::timestamptz[]) as slot, e.collection_id, e.resource_type, sum(net.sign) as event_count,
               coalesce(sum(usage.signed(net.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(net.sign, e.secondary)), 0) as secondary_value
          from {measured} e,
               lateral (select case when e.late then -e.sign else e.sign end) as net (sign)
         group by 1, 2, 3) x
  join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                    = row(x.collection_id, x.resource_type, null, null)::usage.key_columns
  join unnest({marks}::timestamptz[]) with ordinality m (at, number) on m.number > x.slot
 group by 1, 2
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0

-- add --
insert into usage.mark_fact (at, key_id, event_count, total_value, secondary_value)
{sums}
 order by 1, 2

-- total_sums --
-- Likewise by type alone, from the beginning of each mark's hour on: between two bounds, which are marks and whole hours, and then
-- added up. A null for the type is compared as text, so that it can be hashed.
select m.at, m.resource_type, m.event_count::bigint as event_count, m.total_value, m.secondary_value
  from (select b.at, t.resource_type, sum(x.event_count) over up_to as event_count,
               sum(x.total_value) over up_to as total_value, sum(x.secondary_value) over up_to as secondary_value
          from unnest({bounds}::timestamptz[]) with ordinality b (at, number)
         cross join (select distinct x.resource_type from slot x) t
          left join slot x on x.number = b.number - 1 and quote_nullable(x.resource_type) = quote_nullable(t.resource_type)
         where b.at <> usage.hour_of(b.at)
        window up_to as (partition by usage.hour_of(b.at), t.resource_type order by b.number)) m
 where m.event_count <> 0 or m.total_value <> 0 or m.secondary_value <> 0

-- slots --
-- What total_sums adds up.
with slot as materialized (
    select width_bucket(e.created_at, {bounds}::timestamptz[]) as number, e.resource_type, sum(net.sign) as event_count,
           coalesce(sum(usage.signed(net.sign, e.value)), 0) as total_value,
           coalesce(sum(usage.signed(net.sign, e.secondary)), 0) as secondary_value
      from {measured} e,
           lateral (select case when e.late then -e.sign else e.sign end) as net (sign)
     group by 1, 2)

-- add_totals --
insert into usage.mark_total (at, resource_type, event_count, total_value, secondary_value)
{slots}
{sums}
 order by 1, 2

-- set_marks --
update usage.six_hours
   set marks = %(marks)s::timestamptz[], halves = %(halves)s::timestamptz[], has_totals = %(has_totals)s, unmarked_at = null
 where starts_at = %(from)s::timestamptz

-- marked --
-- Those that reach into a range, with their marks, by type too (null: none): what a verification of it compares.
select h.starts_at::text, (h.starts_at + interval '6 hours')::text, h.marks::text,
       case when h.has_totals then
           (select array_agg(x.at order by x.at)
              from (select m.at from usage.mark_total m where m.at > h.starts_at and m.at < h.starts_at + interval '6 hours'
                     union
                    select generate_series(h.starts_at, h.starts_at + interval '6 hours', interval '15 minutes')) x (at)) end::text
  from usage.six_hours h, usage.state s
 where h.marks is not null
   and h.starts_at > %(from)s::timestamptz - interval '6 hours' and h.starts_at < %(to)s::timestamptz
   and h.starts_at >= s.sealed_until
 order by h.starts_at

-- differences --
-- What has to be added to each mark's row to make it right.
select x.at::text, k.collection_id::text, k.resource_type, sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value)
  from (select y.at, y.key_id, y.event_count, y.total_value, y.secondary_value
          from ({sums}) y
        union all
        select f.at, f.key_id, -f.event_count, -f.total_value, -f.secondary_value
          from usage.mark_fact f
         where f.at = any ({marks}::timestamptz[])) x
  join usage.key k on k.id = x.key_id
 group by x.at, k.collection_id, k.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0
 order by x.at, k.collection_id nulls last, k.resource_type

-- total_differences --
-- Likewise of marks by type.
{slots}
select x.at::text, x.resource_type, sum(x.event_count)::bigint, sum(x.total_value), sum(x.secondary_value)
  from (select y.at, y.resource_type, y.event_count, y.total_value, y.secondary_value
          from ({sums}) y
        union all
        select m.at, m.resource_type, -m.event_count, -m.total_value, -m.secondary_value
          from usage.mark_total m
         where m.at > {starts_at}::timestamptz and m.at < {ends_at}::timestamptz) x
 group by x.at, x.resource_type
having sum(x.event_count) <> 0 or sum(x.total_value) <> 0 or sum(x.secondary_value) <> 0
 order by x.at, x.resource_type
