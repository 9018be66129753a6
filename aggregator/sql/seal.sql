-- Run-time SQL of seal and purge. Below the seal, a day's first instant, the rollups are the record.

-- plan --
-- The first instant of a day; whether it lies above the seal; whether not above the frontier and the clock; why there is
-- doubt, and whether it is a partition that is gone: that a seal answers.
select x.instant::text, x.instant > x.sealed_until, x.instant <= least(x.frontier, now()),
       x.doubt, coalesce(x.doubt like 'partition %% of the source is gone%%', false)
  from (select usage.day_start(%(day)s::date, s.time_zone) as instant, s.sealed_until, s.frontier, usage.doubt() as doubt
          from usage.state s) x

-- kept --
-- What the rollups hold of the days [seal, day).
select coalesce(sum(t.event_count), 0)::bigint, count(distinct t.day), min(t.day)::text
  from usage.daily_total t, usage.state s
 where t.day < %(day)s::date and t.day >= usage.local_day(s.sealed_until, s.time_zone)

-- add_late --
-- Late changes below the new seal, all of them: a delete that was logged before the seal still counts.
insert into pg_temp.delta
select 'daily', usage.local_day(e.created_at, %(zone)s), e.collection_id, e.resource_type, e.job_type, e.model_level,
       sum(e.sign), coalesce(sum(usage.signed(e.sign, e.value)), 0), coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
       coalesce(sum(e.sign) filter (where e.rejected), 0), case when e.sign > 0 then 'late' else 'deleted' end, {hour}
  from {measured} e
 group by e.sign, 2, 3, 4, 5, 6{by_hour}

-- drop_late --
delete from usage.late_change l where l.created_at < %(seal)s::timestamptz

-- set_sealed --
-- The hourly rollup ends where a seal cuts an hour: of the part below it nothing could be told any more.
update usage.state
   set sealed_until = %(seal)s::timestamptz, version = version + 1,
       hourly_since = case when hourly_since is null or usage.hour_of(%(seal)s::timestamptz) = %(seal)s::timestamptz then hourly_since
                           else greatest(hourly_since, usage.hours_from(%(seal)s::timestamptz)) end
returning hourly_since

-- cut --
-- The first day that is kept of the last N, and its first instant; whether events lie below it, and the oldest event;
-- whether that is sealed already, and whether folded.
select x.day::text, x.instant::text,
       exists (select from usage.event() e where e.created_at < x.instant),
       (select e.created_at::text from usage.event() e where e.created_at is not null order by e.created_at limit 1),
       x.sealed_until >= x.instant, x.frontier >= x.instant
  from (select d.day, usage.day_start(d.day, s.time_zone) as instant, s.sealed_until, s.frontier
          from usage.state s, lateral (select usage.local_day(now(), s.time_zone) - %(days)s as day) d) x

-- whole_partitions --
-- Partitions that by their bounds hold nothing from an instant on: those of a source that is partitioned by ranges of
-- created_at alone, right below it. Never a default partition. Bounds are printed in UTC and ISO.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.oid::bigint, pg_total_relation_size(c.oid),
       pg_has_role(c.relowner, 'USAGE') and pg_has_role(r.relowner, 'USAGE'), usage.partition_rows(c.oid)
  from usage.state s
  join pg_partitioned_table p on p.partrelid = to_regclass(s.source) and p.partstrat = 'r' and p.partnatts = 1
  join pg_class r on r.oid = p.partrelid
  join pg_attribute a on a.attrelid = p.partrelid and a.attnum = p.partattrs[0] and a.attname = 'created_at'
  join pg_inherits i on i.inhparent = p.partrelid and not i.inhdetachpending
  join pg_class c on c.oid = i.inhrelid and c.relkind = 'r'
  join pg_namespace n on n.oid = c.relnamespace
 where substring(pg_get_expr(c.relpartbound, c.oid) from 'TO \(''([^'']+)''\)$')::timestamptz <= %(seal)s::timestamptz
 order by 1

-- count_below --
select count(*) from usage.event() e where e.created_at < %(seal)s::timestamptz

-- count_partition --
select count(*) from {partition} p

-- average_bytes --
-- Of one event in its table, indexes included; before the first ANALYZE that of a sample, without them.
select coalesce((select sum(pg_total_relation_size(c.oid)) / nullif(sum(greatest(c.reltuples, 0)::numeric), 0)
                   from usage.state s,
                        lateral (select p.relid::oid from pg_partition_tree(to_regclass(s.source)) p where p.isleaf
                                 union select to_regclass(s.source)::oid) t (relid)
                   join pg_class c on c.oid = t.relid and c.relkind = 'r'),
                (select avg(pg_column_size(e.*)) + 28 from (select * from usage.event() limit 1000) e), 0)::float8

-- nth_below --
-- The instant of the N-th oldest event below an instant, or of the last one.
select coalesce(
    (select e.created_at::text from usage.event() e
      where e.created_at < %(seal)s::timestamptz order by e.created_at offset %(n)s - 1 limit 1),
    (select e.created_at::text from usage.event() e
      where e.created_at < %(seal)s::timestamptz order by e.created_at desc limit 1))

-- delete_until --
-- By instant, so that the index and partition pruning serve it, and all that share one go together.
delete from {source} e
 where e.created_at <= %(instant)s::timestamptz and e.created_at < (select s.sealed_until from usage.state s)

-- lock_parent --
lock table only {source} in access exclusive mode

-- drop_partition --
drop table {partition}

-- forget_partition --
-- Gone by our own hand: nothing to be in doubt about.
update usage.state set fingerprint = fingerprint - %(oid)s::text

-- in_order --
-- Why nothing may be deleted now: doubt; or the seal that writers see is not there, so that deletes would count.
select usage.doubt(),
       coalesce(pg_sequence_last_value('usage.seal_seq') >= (extract(epoch from s.sealed_until) * 1000000)::bigint, false)
  from usage.state s
