-- Run-time SQL of a step of a refresh: where it ends. Ranges are [start, end). Instants travel as text: infinity and years BC have no datetime.

-- estimate --
explain (format json) select from usage.event() e where e.created_at >= %(from)s::timestamptz and e.created_at < %(to)s::timestamptz

-- nth_event --
-- The instant of the N-th event from the frontier on, and the first instant of its day.
with nth as materialized (  -- once
    select f.created_at
      from usage.nth_event(%(from)s::timestamptz, %(to)s::timestamptz, %(n)s) f (created_at)
     where f.created_at is not null
)
select n.created_at::text, d.start::text, n.created_at > %(from)s::timestamptz, d.start > %(from)s::timestamptz
  from nth n, lateral (select usage.day_start(usage.local_day(n.created_at, %(zone)s), %(zone)s) as start) d

-- next_instant --
select e.created_at::text
  from usage.event() e
 where e.created_at > %(from)s::timestamptz and e.created_at < %(to)s::timestamptz
 order by e.created_at
 limit 1

-- first_instant --
-- Of an event; null: there is none, or it has no days.
select case when isfinite(n.at) then n.at::text end from usage.next_event(%(from)s::timestamptz, %(to)s::timestamptz) n (at)

-- midnight_between --
-- The first instant of the day that the middle of a range lies in; no row: it is not within the range.
select x.at::text
  from usage.day_start(usage.local_day(%(from)s::timestamptz + (%(to)s::timestamptz - %(from)s::timestamptz) / 2, %(zone)s), %(zone)s) x (at)
 where x.at > %(from)s::timestamptz and x.at < %(to)s::timestamptz
