-- Run-time SQL of the materialized views.

-- views --
select v.view_name from usage.view_refresh v order by v.view_name desc

-- is_stale --
-- Whether the rollups changed or the local day turned since; no row: another session is refreshing it just now.
select v.version is distinct from s.version or v.as_of_day is distinct from usage.local_day(now(), s.time_zone)
  from usage.view_refresh v, usage.state s
 where v.view_name = %(view)s
   for update of v skip locked

-- refresh --
select usage.refresh_view(%(view)s)

-- record --
update usage.view_refresh v
   set refreshed_at = now(), as_of_day = usage.local_day(now(), s.time_zone), version = s.version
  from usage.state s
 where v.view_name = %(view)s
