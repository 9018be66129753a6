-- Run-time SQL of the frontier that writers see: move it, and wait for those who saw the old one.

-- behind --
-- Whether changes may have gone unseen, or it was noticed, and not noted, that they may. Without triggers no writer looks at
-- it, and the advance that follows puts it right.
select s.source is not null and s.capture_mode is distinct from 'lookback'
       and (isfinite(s.frontier)
            and coalesce(pg_sequence_last_value('usage.frontier_seq') < extract(epoch from s.frontier) * 1000000, true)
            or coalesce(pg_sequence_last_value('usage.doubt_seq'), 0) <> s.doubts)
  from usage.state s

-- count_doubt --
-- At once, also for readers whose snapshot is older.
select setval('usage.doubt_seq', greatest(pg_sequence_last_value('usage.doubt_seq'), s.doubts) + 1) from usage.state s

-- note_doubt --
update usage.state set doubts = pg_sequence_last_value('usage.doubt_seq')

-- mutex --
-- Without it two refreshers' read-then-setval move the sequence backwards. For this transaction only.
select pg_advisory_xact_lock(7305806122046875237)

-- advance --
-- Move the frontier that writers see to now, only ever upwards, also if the clock stepped back or the sequence was
-- left behind the rollups by a restore. Writers see it as float8, which from 2106 on no longer has every microsecond, and may
-- round up: the rollups' frontier is then the instant itself, or the sequence would be behind it for ever.
with moved as materialized (
    select setval('usage.frontier_seq', greatest(
               (extract(epoch from clock_timestamp()) * 1000000)::bigint,
               pg_sequence_last_value('usage.frontier_seq'),
               (select (extract(epoch from s.frontier) * 1000000)::bigint from usage.state s where isfinite(s.frontier)))) as at
)
select m.at,
       least(usage.frontier_for_writers(),
             timestamptz 'epoch' + m.at / 86400000000 * interval '1 day' + m.at % 86400000000 * interval '1 microsecond')
  from moved m

-- writers --
-- The transaction ids of those who hold a write lock on the source or a partition. pg_locks is read once: a PREPARE
-- TRANSACTION moves its locks to another holder meanwhile. By id lock and not by snapshot: pg_snapshot_xip() leaves out
-- the newest writers.
-- Partitions are looked up in pg_inherits: pg_partition_tree() would wait for the host's locks on them, holding others.
with recursive lock as materialized (
    select l.locktype, l.database, l.relation, l.mode, l.granted, l.virtualtransaction, l.transactionid
      from pg_locks l
), tree as (
    -- of a source without triggers nobody is waited for: the writers may be on another server
    select to_regclass(s.source)::oid as relid from usage.state s where s.capture_mode is distinct from 'lookback'
    union
    select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid
)
select id.transactionid::text
  from lock id
 where id.locktype = 'transactionid'
   and id.mode = 'ExclusiveLock'
   and id.granted
   -- Arrays, not joins: the planner takes the locks for few and would compare each with each, and there may be ten thousand.
   and id.virtualtransaction = any (array(
        select distinct on_table.virtualtransaction
          from lock on_table
         where on_table.locktype = 'relation'
           and on_table.granted
           and on_table.database = (select d.oid from pg_database d where d.datname = current_database())
           and on_table.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
           and on_table.relation = any (array(select t.relid from tree t))))

-- still_open --
-- The oldest first.
select l.transactionid::text
  from pg_locks l
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
   and l.transactionid::text = any(%(ids)s)
 order by age(l.transactionid) desc

-- describe_writers --
-- pid, application and age, as far as this role may see them; prepared transactions have their name.
select coalesce('prepared transaction ' || quote_literal(p.gid) || ', since ' || date_trunc('second', p.prepared)::text,
                'pid ' || l.pid
                || coalesce(' (' || nullif(a.application_name, '') || ')', '')
                || coalesce(', open for ' || date_trunc('second', clock_timestamp() - a.xact_start)::text, ''),
                -- between being prepared and being listed so, or ended
                'transaction ' || l.transactionid::text)
  from pg_locks l
  left join pg_prepared_xacts p on p.transaction = l.transactionid
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
   and l.transactionid::text = any(%(ids)s)
 order by 1

-- describe_old_writers --
-- The same of those that have been open for some time, or for how long this role may not see: then backend_start is
-- hidden too, which every session has.
select coalesce('prepared transaction ' || quote_literal(p.gid) || ', since ' || date_trunc('second', p.prepared)::text,
                'pid ' || l.pid
                || coalesce(' (' || nullif(a.application_name, '') || ')', '')
                || coalesce(', open for ' || date_trunc('second', clock_timestamp() - a.xact_start)::text,
                            ', open for a time that this role may not see'),
                -- between being prepared and being listed so, or ended
                'transaction ' || l.transactionid::text)
  from pg_locks l
  left join pg_prepared_xacts p on p.transaction = l.transactionid
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
   and l.transactionid::text = any(%(ids)s)
   and (coalesce(p.prepared, a.xact_start) < clock_timestamp() - make_interval(secs => %(seconds)s)
        or a.pid is not null and a.backend_start is null)
 order by 1
