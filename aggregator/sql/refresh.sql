-- Run-time SQL of refresh. Ranges are [start, end). Instants and days travel as text: infinity and years BC have no
-- datetime.

-- fingerprint_doubt --
select usage.fingerprint_doubt(), usage.doubt()

-- days_moved --
select s.source is not null and usage.moved_day(false) is not null from usage.state s

-- note_storage --
-- From here on a crash and a new file, both, are a doubt.
update usage.state set storage = usage.storage() where storage is distinct from usage.storage()

-- new_partitions --
-- What the fingerprint does not know, with its entry; whether it holds rows itself; whether it was truncated or
-- rewritten since it was made, so that late changes may be left of events that went unseen; whether there is a gap in
-- capture elsewhere.
select f.key, f.value, c.relkind <> 'p', usage.is_rewritten(f.key::oid, f.value), usage.uncaptured() is not null
  from usage.state s, jsonb_each_text(usage.fingerprint()) f
  join pg_class c on c.oid = f.key::oid
 where not s.fingerprint ? f.key
 order by c.oid

-- partition_name --
-- And how to read it; no row for one that is none of the source's any more.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname), usage.partition_rows(c.oid)
  from usage.state s, pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.oid = %(oid)s::oid and pg_partition_root(c.oid) = to_regclass(s.source)

-- partition_span --
select usage.local_day(min(e.created_at), s.time_zone)::text,
       usage.next_day(usage.local_day(max(e.created_at), s.time_zone))::text
  from {partition} e, usage.state s
 where e.created_at < s.frontier
 group by s.time_zone

-- gone_span --
-- The days of late changes whose partition is gone.
select usage.local_day(min(l.created_at), s.time_zone)::text,
       usage.next_day(usage.local_day(max(l.created_at), s.time_zone))::text
  from usage.state s, usage.late_change l
 where l.created_at >= s.sealed_until and l.created_at < s.frontier and l.leaf is not null
   and to_regclass(s.source)::oid <> l.leaf
   and not exists (select from pg_partition_tree(to_regclass(s.source)) t where t.relid::oid = l.leaf)
 group by s.time_zone

-- any_gone --
select exists (
    select from usage.state s, usage.late_change l
     where l.created_at >= s.sealed_until and l.created_at < %(limit)s::timestamptz and l.leaf is not null
       and s.capture_mode = 'always' and to_regclass(s.source)::oid <> l.leaf
       and not exists (select from pg_partition_tree(to_regclass(s.source)) t where t.relid::oid = l.leaf))

-- accept_partitions --
-- What was found new, and is as it was then, becomes known; what came or changed since is for the next time.
update usage.state s
   set fingerprint = s.fingerprint || n.known
  from (select jsonb_object_agg(f.key, f.value) as known
          from usage.state t, jsonb_each_text(usage.fingerprint()) f
         where %(found)s::jsonb ->> f.key = f.value and usage.is_captured(f.value, t.capture_mode)) n
 where n.known is not null

-- count_tail --
select count(*) from usage.event_between(%(from)s::timestamptz, null) e

-- count_late --
select count(*) from usage.late_change l where l.created_at < %(frontier)s::timestamptz

-- any_late --
select exists (select from usage.late_change l where l.created_at < %(frontier)s::timestamptz),
       exists (select from usage.late_change l, usage.state s where l.created_at < s.zone_valid_from)

-- late_limit --
-- Claimed are the late changes below this instant: the oldest N, and those that share the last one's instant.
select coalesce(
    (select l.created_at::text from usage.late_change l
      where l.created_at < %(frontier)s::timestamptz
        and l.created_at > (select k.created_at from usage.late_change k
                             where k.created_at < %(frontier)s::timestamptz
                             order by k.created_at offset %(n)s - 1 limit 1)
      order by l.created_at limit 1),
    %(frontier)s::text)

-- add_late --
insert into pg_temp.delta
select 'daily', usage.local_day(e.created_at, %(zone)s), e.collection_id, e.resource_type, e.job_type, e.model_level,
       sum(e.sign), coalesce(sum(usage.signed(e.sign, e.value)), 0), coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
       coalesce(sum(e.sign) filter (where e.rejected), 0), %(reason)s, {hour}
  from {measured} e
 group by 2, 3, 4, 5, 6{by_hour}

-- drop_claimed --
delete from usage.late_change l where l.created_at < %(limit)s::timestamptz

-- drop_covered --
-- All of them, unbounded: the raw events of that range, read in this same snapshot, already hold their effect.
delete from usage.late_change l where l.created_at >= %(from)s::timestamptz and l.created_at < %(to)s::timestamptz

-- drop_unsealed_late --
delete from usage.late_change l using usage.state s where l.created_at >= s.sealed_until

-- drop_markers --
delete from usage.truncate_marker

-- frontier_to_seal --
update usage.state set frontier = sealed_until, version = version + 1

-- believe_anew --
-- Nothing of the rollups that were to be repaired is left. Not if capture has a gap (what is known has none, and whatever
-- came since is a doubt), or events lie in years that the zone has no day intervals for.
update usage.state
   set trusted = true, distrust_reason = null, repair_day = null
 where distrust_reason = any(%(reasons)s)
   and usage.fingerprint_doubt() is null
   and not exists (select from usage.event() e where e.created_at < zone_valid_from)

-- set_frontier --
update usage.state set frontier = %(frontier)s::timestamptz

-- frontier --
select s.frontier from usage.state s

-- begin_run --
insert into usage.refresh_run (frontier_from, frontier_to)
select s.frontier, s.frontier from usage.state s
returning id

-- do_not_wait --
-- For the disk, nor for a standby: a step that a crash takes back has not happened. The run's end is written after all steps, and waits for them.
set local synchronous_commit = off

-- record_step --
update usage.refresh_run
   set steps = steps + 1, events = events + %(events)s, late_changes = late_changes + %(late)s,
       frontier_to = (select s.frontier from usage.state s)
 where id = %(run)s and status = 'running'

-- finish_run --
update usage.refresh_run
   set finished_at = clock_timestamp(), status = %(status)s, waited_for = %(waited_for)s, error = %(error)s
 where id = %(run)s

-- is_reached --
-- Whether writers still see a frontier at or past the target: it may have been reset since.
select usage.frontier_for_writers() >= %(target)s::timestamptz

-- set_seal --
-- The seal that writers see, in case a dump or a kill left it behind: only ever upwards.
select setval('usage.seal_seq', (extract(epoch from s.sealed_until) * 1000000)::bigint)
  from usage.state s
 where isfinite(s.sealed_until)
   and coalesce(pg_sequence_last_value('usage.seal_seq') < extract(epoch from s.sealed_until) * 1000000, true)

-- is_before --
select %(frontier)s::timestamptz < %(target)s::timestamptz
