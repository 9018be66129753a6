-- Run-time SQL of rebuild: a frontier that lies in the future is put back to now.

-- target --
-- Where the frontier belongs, and whether it lies beyond: never below the seal.
select greatest(clock_timestamp(), s.sealed_until)::text, s.frontier > greatest(clock_timestamp(), s.sealed_until)
  from usage.state s

-- unseen --
select usage.fingerprint_doubt() is not null or usage.moved_day(false) is not null

-- take_out --
-- What the rollups hold from an instant on, signed to be taken out: raw events less the late changes not folded yet.
insert into pg_temp.delta
select 'daily', usage.local_day(e.created_at, %(zone)s), e.collection_id, e.resource_type, e.job_type, e.model_level,
       sum(e.sign), coalesce(sum(usage.signed(e.sign, e.value)), 0), coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
       coalesce(sum(e.sign) filter (where e.rejected), 0), 'repaired', {hour}
  from {measured} e
 group by 2, 3, 4, 5, 6{by_hour}

-- set_frontier --
update usage.state set frontier = %(frontier)s::timestamptz

-- drop_tail_changes --
-- They are in the raw events, which are read from here on.
delete from usage.late_change l where l.created_at >= %(from)s::timestamptz

-- lock_out_readers --
-- Of usage.state: they ask it first whether to believe the rollups, and hold their lock on it until they end.
lock table usage.state in access exclusive mode

-- is_beyond --
-- Whether the row was moved beyond now again; a seal that lies there is none of ours to move.
select s.frontier > clock_timestamp() and s.frontier > s.sealed_until from usage.state s

-- stop_refreshes --
-- Their targets no longer hold, also once the sequence is past them again: their next step finds its run ended.
update usage.refresh_run set status = 'stopped', finished_at = clock_timestamp() where status = 'running'

-- lower_sequence --
-- To now, or to where the rollups are, and only ever downwards: behind them already, it says that changes went unseen.
select setval('usage.frontier_seq', x.target)
  from (select (extract(epoch from greatest(clock_timestamp(), s.frontier)) * 1000000)::bigint as target from usage.state s) x
 where pg_sequence_last_value('usage.frontier_seq') > x.target
