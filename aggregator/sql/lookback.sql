-- Run-time SQL of lookback, where the source has no triggers.

-- target --
-- Never past the sequence, which the steps compare with.
select greatest(least(clock_timestamp(), usage.frontier_for_writers()) - make_interval(secs => %(grace)s), s.frontier)::text
  from usage.state s

-- first_day --
-- So many local days before the frontier of the refresh before, and never a sealed one; no row before the first refresh.
select greatest(usage.local_day(s.frontier, s.time_zone) - s.lookback_days, usage.local_day(s.sealed_until, s.time_zone))::text
  from usage.state s
 where isfinite(s.frontier) and isfinite(usage.local_day(s.frontier, s.time_zone))
   and s.frontier > s.sealed_until

-- purgeable --
-- Days that each refresh repairs (null: there are triggers), and whether events can be deleted; 16: the DELETE of its bits.
select s.source, s.lookback_days, (pg_relation_is_updatable(to_regclass(s.source), true) & 16) <> 0 and not s.distributed
  from usage.state s
