-- Run-time SQL of a transaction that changes the rollups: lock, collect differences, add them.
-- Ranges are [start, end). Instants and days travel as text: infinity and years BC have no datetime.

-- lock_source --
-- Never waits, so it can never be part of a deadlock with the host's DDL.
lock table {source} in access share mode nowait

-- settings_of_workers --
-- The same on the workers: with less they sort events on disk (a third of the time).
set local citus.propagate_set_commands = 'local';
set local work_mem = '64MB'

-- state --
select s.source, s.frontier, s.sealed_until, s.trusted, s.distrust_reason, s.time_zone, s.zone_valid_from,
       exists (select from usage.truncate_marker) as truncated,
       usage.local_day(s.frontier, s.time_zone) as frontier_day,
       usage.local_day(s.sealed_until, s.time_zone) as sealed_day,
       s.lookback_days, s.distributed,
       coalesce((select c.relkind <> 'f' from pg_class c where c.oid = to_regclass(s.source)), true) as lockable,
       s.hourly_since
  from usage.state s

-- lock_state --
-- The statement that takes the snapshot. A second refresher waits here, fails to serialize, and tries again.
select s.id from usage.state s for update

-- lock_holders --
-- Who holds a lock on the state's row, or on the source against all others; null: nobody any more.
select string_agg(distinct 'pid ' || l.pid || coalesce(' (' || nullif(a.application_name, '') || ')', ''), '; ')
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid()
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
   and (l.relation = 'usage.state'::regclass and l.mode <> 'AccessShareLock'
        or l.relation = (select to_regclass(s.source) from usage.state s) and l.mode = 'AccessExclusiveLock')

-- distrust --
-- The first reason stays. A repair that is under way must begin anew: it cannot know what happened.
update usage.state
   set trusted = false, distrust_reason = coalesce(distrust_reason, %(reason)s), repair_day = null
 where trusted or repair_day is not null

-- any_new_partition --
-- Or a child that is no partition. One that is half detached is none of the source's any more. Without triggers it makes no difference.
-- And what is to be explained: pg_inherits is read in this snapshot, and only partitions have a function that looks at once.
select s.capture_mode is distinct from 'lookback'
   and (exists (select from pg_partition_tree(to_regclass(s.source)) t where not s.fingerprint ? t.relid::oid::text)
        or exists (select from pg_inherits i where i.inhparent = s.source_oid and not i.inhdetachpending and not s.fingerprint ? i.inhrelid::text)),
       (select s.source from pg_class c where c.oid = s.source_oid and c.relkind = 'r' and s.capture_mode is distinct from 'lookback')
  from usage.state s

-- explain --
explain (format json) select from {source}

-- repair_anew --
-- A repair that does not know the partition has to begin anew: when that has left again the fingerprint is as before, and events
-- of it would stay.
update usage.state set repair_day = null where repair_day is not null

-- measured --
-- What to write in FROM for signed events.
select usage.measured_sql(%(signs)s::integer[], %(starts)s::timestamptz[], %(ends)s::timestamptz[],
                          %(late_from)s::timestamptz, %(late_to)s::timestamptz, 'l.sign = ' || %(late_sign)s::integer, null)

-- presumed --
select usage.presumed_sql(%s::timestamptz, %s::timestamptz)

-- count_version --
update usage.state set version = version + 1
 where exists (select from pg_temp.daily_total_delta) or exists (select from pg_temp.delta)

-- create_delta --
-- Differences that this transaction adds to the rollups. reason: null for raw events at the tail. hour: null where no
-- hour is kept. malformed: events were presumed to be well formed, and some are not.
create temporary table delta (
    rollup text, bucket date, collection_id uuid, resource_type text collate "C", job_type text collate "C", model_level text collate "C",
    event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint, reason text, hour timestamptz, malformed boolean
) on commit drop

-- drop_delta --
-- A transaction may fold several times.
drop table if exists pg_temp.delta, pg_temp.daily_delta, pg_temp.daily_reasons, pg_temp.daily_collection_delta, pg_temp.monthly_delta,
    pg_temp.monthly_collection_delta, pg_temp.quarterly_collection_delta, pg_temp.daily_total_delta, pg_temp.hourly_delta,
    pg_temp.hourly_collection_delta, pg_temp.hourly_total_delta

-- settings --
-- Keys are costly to compare, and cheap to hash: never sort them, whatever the planner guesses of a table that has grown.
set local enable_mergejoin = off;
set local default_statistics_target = 10

-- analyze --
-- A temporary table has no statistics: the planner takes a million differences for a thousand, and looks up their keys one
-- by one. A small sample will do.
analyze pg_temp.{delta} ({column})

-- hour --
-- The hour that an event counts in; null: it lies below what the hourly rollup has.
case when e.created_at >= {since}::timestamptz then usage.hour_of(e.created_at) end

-- of_rollup --
(select * from pg_temp.delta d where d.rollup = {rollup})

-- numbered --
-- Differences by the numbers of their keys; null: a key that is new (of a value of several columns IS NULL says something else).
select x.{bucket} as bucket, k.id as key_id, k.collection_key{hour}, x.event_count, x.total_value, x.secondary_value, x.rejected_count,
       x.malformed, case when k.id is null then row(x.collection_id, x.resource_type, x.job_type, x.model_level)::usage.key_columns end as new_key
  from {differences} x
  left join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                         = row(x.collection_id, x.resource_type, x.job_type, x.model_level)::usage.key_columns

-- create_numbered --
-- By a statement that parallel workers may run where it reads no temporary table: an INSERT never is.
create temporary table {delta} on commit drop as {numbered}

-- add_rows --
insert into pg_temp.{table} {rows}

-- known_keys --
select coalesce(max(k.id), 0) from usage.key k

-- read_all_keys --
-- Once for the whole statement, not one for each row, which the planner thinks cheaper than it is.
set local enable_nestloop = off

-- look_keys_up --
set local enable_nestloop to default

-- any_new_key --
select exists (select from pg_temp.{delta} x where x.key_id is null)

-- add_collection_keys --
-- Numbered one after the other: folds are serialized by the state's row.
insert into usage.key (id, collection_id, resource_type, collection_key)
select x.id, (x.key).collection_id, (x.key).resource_type, x.id
  from (select coalesce((select max(k.id) from usage.key k), 0) + row_number() over () as id, n.key
          from (select distinct row((d.new_key).collection_id, (d.new_key).resource_type, null, null)::usage.key_columns as key
                  from pg_temp.{delta} d where d.key_id is null) n
         where not exists (select from usage.key k
                            where row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns = n.key)) x

-- add_keys --
insert into usage.key (id, collection_id, resource_type, job_type, model_level, collection_key)
select coalesce((select max(k.id) from usage.key k), 0) + row_number() over (),
       (x.key).collection_id, (x.key).resource_type, (x.key).job_type, (x.key).model_level, c.id
  from (select distinct d.new_key as key from pg_temp.{delta} d where d.key_id is null) x
  join usage.key c on row(c.collection_id, c.resource_type, c.job_type, c.model_level)::usage.key_columns
                    = row((x.key).collection_id, (x.key).resource_type, null, null)::usage.key_columns
 where ((x.key).job_type is not null or (x.key).model_level is not null)
   -- workers do not see those that this transaction has added
   and not exists (select from usage.key k
                    where row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns = x.key)

-- number_new_keys --
update pg_temp.{delta} x
   set key_id = k.id, collection_key = k.collection_key
  from usage.key k
 where x.key_id is null
   and row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns = x.new_key

-- merge_daily --
-- Of several reasons, or hours: a row may appear once only.
alter table pg_temp.daily_delta rename to daily_reasons;
create temporary table daily_delta on commit drop as
select x.bucket, x.key_id, x.collection_key, sum(x.event_count)::bigint as event_count, sum(x.total_value) as total_value,
       sum(x.secondary_value) as secondary_value, sum(x.rejected_count)::bigint as rejected_count
  from pg_temp.daily_reasons x
 group by 1, 2, 3

-- derive --
-- What the differences of one rollup mean for another one.
create temporary table {coarser} on commit drop as
select {bucket} as bucket, {key} as key_id, sum(x.event_count)::bigint as event_count, sum(x.total_value) as total_value,
       sum(x.secondary_value) as secondary_value, sum(x.rejected_count)::bigint as rejected_count
  from pg_temp.{delta} x{where}
 group by 1, 2

-- derive_total --
create temporary table daily_total_delta on commit drop as
select x.bucket, k.resource_type, sum(x.event_count)::bigint as event_count, sum(x.total_value) as total_value,
       sum(x.secondary_value) as secondary_value, sum(x.rejected_count)::bigint as rejected_count
  from pg_temp.daily_collection_delta x
  join usage.key k on k.id = x.key_id
 group by 1, 2

-- total_delta --
create temporary table {delta} on commit drop as
select x.{bucket_of} as bucket, x.resource_type, x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = {rollup}

-- new_buckets --
-- Days, months or hours that have no rows yet, and whether there are others. By min(), which goes by the index: for EXISTS the
-- planner may read a rollup from its beginning.
select coalesce(array_agg(x.bucket::text) filter (where x.is_new), '{{}}'), coalesce(bool_or(not x.is_new), false)
  from (select d.bucket, (select min(f.key_id) from usage.{fact} f where f.{bucket} = d.bucket) is null as is_new
          from (select distinct {bucket_of} as bucket from pg_temp.{differences} x) d) x

-- append --
-- Buckets that have no rows yet: nothing to conflict with, half the cost. In the order of the index.
insert into usage.{fact} ({bucket}, key_id, event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.key_id, x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.{delta} x
 where x.bucket = any(%(new)s::{type}[])
 order by x.bucket, x.key_id

-- add --
-- A month whose name is no first day is only ever taken away: there is no such row. In the order of the index, as above: new
-- keys that lie in the order of a hash table make the hash tables slow that they are read into (twice the time of a read).
insert into usage.{fact} as f ({bucket}, key_id, event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.key_id, x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.{delta} x
 where x.bucket <> all(%(new)s::{type}[])
 order by x.bucket, x.key_id
    on conflict ({bucket}, key_id) do update
   set event_count = f.event_count + excluded.event_count,
       total_value = f.total_value + excluded.total_value,
       secondary_value = f.secondary_value + excluded.secondary_value,
       rejected_count = f.rejected_count + excluded.rejected_count

-- sweep --
-- Rows that became nothing; only what was subtracted from can have. By bucket and key: a month may have a million others.
delete from usage.{fact} r
 using pg_temp.{delta} x
 where r.{bucket} = x.bucket and r.key_id = x.key_id
   and r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0

-- add_total --
insert into usage.{total} as t ({bucket}, resource_type, event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.resource_type, x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.{delta} x
    on conflict on constraint {key} do update
   set event_count = t.event_count + excluded.event_count,
       total_value = t.total_value + excluded.total_value,
       secondary_value = t.secondary_value + excluded.secondary_value,
       rejected_count = t.rejected_count + excluded.rejected_count

-- sweep_total --
delete from usage.{total} r
 using (select distinct x.bucket from pg_temp.{delta} x) touched
 where r.{bucket} = touched.bucket
   and r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0

-- counted --
select coalesce(sum(x.event_count), 0)::bigint from pg_temp.daily_total_delta x

-- late_counted --
-- Events that the late changes of the delta add, less those that they take away.
select coalesce(sum(x.event_count), 0)::bigint from pg_temp.delta x where x.reason is not null

-- note_days --
-- When the days began that something is added to; days that are noted stay as they are: what they hold was added up so.
with noted as (
    insert into usage.rolled_day (day, starts_at, ends_at)
    select d.day, usage.day_start(d.day, s.time_zone), usage.day_start(usage.next_day(d.day), s.time_zone)
      from usage.state s, (select x.bucket as day from pg_temp.daily_total_delta x where isfinite(x.bucket)
                             union
                             select x.bucket from pg_temp.delta x where x.rollup = 'daily' and isfinite(x.bucket)) d
     where s.time_zone <> 'UTC'
        on conflict (day) do nothing
    returning 1)
update usage.state set rolled_days = rolled_days + 1 where exists (select from noted)

-- restate --
-- Changes with a reason, to days that were over when the frontier was last set (a repair: all of them).
insert into usage.restatement
       (run_id, rollup, bucket, collection_id, resource_type, job_type, model_level,
        event_count, total_value, secondary_value, rejected_count, reason)
select %(run)s::bigint, x.rollup, x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level,
       sum(x.event_count), sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count), x.reason
  from pg_temp.delta x
 where x.reason is not null
   and (%(below)s::date is null or x.bucket < %(below)s::date)
 group by x.rollup, x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level, x.reason
