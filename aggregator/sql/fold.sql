-- Run-time SQL of a transaction that changes the rollups: lock, collect differences, add them.
-- Ranges are [start, end). Instants and days travel as text: infinity and years BC have no datetime.

-- lock_source --
-- Never waits, so it can never be part of a deadlock with the host's DDL.
lock table {source} in access share mode nowait

-- lockable --
-- A foreign table cannot be locked, nor rewritten by this server.
select coalesce((select c.relkind <> 'f' from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass(%(source)s)), true)

-- settings_of_workers --
-- The same on the workers: with less they sort events on disk (a third of the time).
set local citus.propagate_set_commands = 'local';
set local work_mem = '64MB'

-- state --
select s.source, s.frontier, s.sealed_until, s.trusted, s.distrust_reason, s.time_zone, s.zone_valid_from,
       exists (select from usage.truncate_marker) as truncated,
       usage.local_day(s.frontier, s.time_zone) as frontier_day,
       usage.local_day(s.sealed_until, s.time_zone) as sealed_day,
       s.lookback_days, s.distributed
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

-- count_version --
update usage.state set version = version + 1 where exists (select from pg_temp.delta)

-- create_delta --
-- Differences that this transaction adds to the rollups. reason: null for raw events at the tail.
create temporary table delta (
    rollup text not null, bucket date not null,
    collection_id uuid, resource_type text collate "C", job_type text collate "C", model_level text collate "C",
    event_count bigint not null, total_value numeric not null, secondary_value numeric not null, rejected_count bigint not null,
    reason text
) on commit drop

-- derive --
-- What the days' differences mean for the months, the collections and the totals.
insert into pg_temp.delta
select 'monthly', usage.month_of(x.bucket), x.collection_id, x.resource_type, x.job_type, x.model_level,
       sum(x.event_count), sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count), null
  from pg_temp.delta x
 where x.rollup = 'daily'
 group by 2, 3, 4, 5, 6
union all
select 'daily_collection', x.bucket, x.collection_id, x.resource_type, null, null,
       sum(x.event_count), sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count), null
  from pg_temp.delta x
 where x.rollup = 'daily'
 group by 2, 3, 4

-- derive_coarser --
insert into pg_temp.delta
select 'monthly_collection', usage.month_of(x.bucket), x.collection_id, x.resource_type, null, null,
       sum(x.event_count), sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count), null
  from pg_temp.delta x
 where x.rollup = 'daily_collection'
 group by 2, 3, 4
union all
select 'daily_total', x.bucket, null, x.resource_type, null, null,
       sum(x.event_count), sum(x.total_value), sum(x.secondary_value), sum(x.rejected_count), null
  from pg_temp.delta x
 where x.rollup = 'daily_collection'
 group by 2, 4

-- daily_reasons --
select distinct x.reason from pg_temp.delta x where x.rollup = 'daily'

-- append_daily --
-- Days that have no rows yet: nothing to conflict with, half the cost. In key order, for the index's sake.
insert into usage.daily
       (day, collection_id, resource_type, job_type, model_level,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'daily'
   and x.reason is not distinct from %(reason)s
   and x.bucket = any(%(days)s::date[])
 order by x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level

-- fold_daily --
-- One reason at a time: a row may appear once only. days: those that were just appended.
insert into usage.daily as d
       (day, collection_id, resource_type, job_type, model_level,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'daily'
   and x.reason is not distinct from %(reason)s
   and x.bucket <> all(%(days)s::date[])
    on conflict on constraint daily_key do update
   set event_count = d.event_count + excluded.event_count,
       total_value = d.total_value + excluded.total_value,
       secondary_value = d.secondary_value + excluded.secondary_value,
       rejected_count = d.rejected_count + excluded.rejected_count

-- sweep_daily --
-- Rows that became nothing; only what was subtracted from can have.
delete from usage.daily r
 using (select distinct x.bucket from pg_temp.delta x where x.rollup = 'daily') touched
 where r.day = touched.bucket
   and r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0

-- fold_monthly --
insert into usage.monthly as m
       (month, collection_id, resource_type, job_type, model_level,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'monthly'
   and x.bucket = usage.month_of(x.bucket)
    on conflict on constraint monthly_key do update
   set event_count = m.event_count + excluded.event_count,
       total_value = m.total_value + excluded.total_value,
       secondary_value = m.secondary_value + excluded.secondary_value,
       rejected_count = m.rejected_count + excluded.rejected_count

-- sweep_monthly --
-- And what only a repair touches: a row whose month is no first day, all of which is taken away.
delete from usage.monthly r
 using (select distinct x.bucket from pg_temp.delta x where x.rollup = 'monthly') touched
 where r.month = touched.bucket
   and (r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0
        or r.month <> usage.month_of(r.month))

-- append_daily_collection --
insert into usage.daily_collection
       (day, collection_id, resource_type,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'daily_collection'
   and x.bucket = any(%(days)s::date[])
 order by x.bucket, x.collection_id, x.resource_type

-- fold_daily_collection --
insert into usage.daily_collection as d
       (day, collection_id, resource_type,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'daily_collection'
   and x.bucket <> all(%(days)s::date[])
    on conflict on constraint daily_collection_key do update
   set event_count = d.event_count + excluded.event_count,
       total_value = d.total_value + excluded.total_value,
       secondary_value = d.secondary_value + excluded.secondary_value,
       rejected_count = d.rejected_count + excluded.rejected_count

-- sweep_daily_collection --
delete from usage.daily_collection r
 using (select distinct x.bucket from pg_temp.delta x where x.rollup = 'daily_collection') touched
 where r.day = touched.bucket
   and r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0

-- fold_monthly_collection --
insert into usage.monthly_collection as m
       (month, collection_id, resource_type,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.collection_id, x.resource_type,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'monthly_collection'
   and x.bucket = usage.month_of(x.bucket)
    on conflict on constraint monthly_collection_key do update
   set event_count = m.event_count + excluded.event_count,
       total_value = m.total_value + excluded.total_value,
       secondary_value = m.secondary_value + excluded.secondary_value,
       rejected_count = m.rejected_count + excluded.rejected_count

-- sweep_monthly_collection --
delete from usage.monthly_collection r
 using (select distinct x.bucket from pg_temp.delta x where x.rollup = 'monthly_collection') touched
 where r.month = touched.bucket
   and (r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0
        or r.month <> usage.month_of(r.month))

-- fold_daily_total --
insert into usage.daily_total as t
       (day, resource_type,
        event_count, total_value, secondary_value, rejected_count)
select x.bucket, x.resource_type,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count
  from pg_temp.delta x
 where x.rollup = 'daily_total'
    on conflict on constraint daily_total_key do update
   set event_count = t.event_count + excluded.event_count,
       total_value = t.total_value + excluded.total_value,
       secondary_value = t.secondary_value + excluded.secondary_value,
       rejected_count = t.rejected_count + excluded.rejected_count

-- sweep_daily_total --
delete from usage.daily_total r
 using (select distinct x.bucket from pg_temp.delta x where x.rollup = 'daily_total') touched
 where r.day = touched.bucket
   and r.event_count = 0 and r.total_value = 0 and r.secondary_value = 0 and r.rejected_count = 0

-- new_days --
-- Days of the delta that have no rows in daily, and in daily_collection, yet.
select coalesce(array_agg(x.bucket::text) filter (
           where x.rollup = 'daily' and not exists (select from usage.daily d where d.day = x.bucket)), '{}'),
       coalesce(array_agg(x.bucket::text) filter (
           where x.rollup = 'daily_collection'
             and not exists (select from usage.daily_collection d where d.day = x.bucket)), '{}')
  from (select distinct y.rollup, y.bucket from pg_temp.delta y where y.rollup in ('daily', 'daily_collection')) x

-- restate --
-- Changes with a reason, to days that were over when the frontier was last set (a repair: all of them).
insert into usage.restatement
       (run_id, rollup, bucket, collection_id, resource_type, job_type, model_level,
        event_count, total_value, secondary_value, rejected_count, reason)
select %(run)s::bigint, x.rollup, x.bucket, x.collection_id, x.resource_type, x.job_type, x.model_level,
       x.event_count, x.total_value, x.secondary_value, x.rejected_count, x.reason
  from pg_temp.delta x
 where x.reason is not null
   and (%(below)s::date is null or x.bucket < %(below)s::date)
