-- Run-time SQL of the hourly rollup: on, off, and the fill. Hours are whole hours of UTC; instants travel as text.

-- turn_on --
-- From the first hour that no fold has touched; before the first refresh from the first of all.
update usage.state
   set hourly_since = case when isfinite(frontier) then usage.hours_from(frontier) else '-infinity' end
 where hourly_since is null

-- turn_off --
update usage.state set hourly_since = null where hourly_since is not null

-- delete_below --
-- All of them, if null is given.
delete from usage.{fact} f where f.hour < coalesce(%(hour)s::timestamptz, 'infinity')

-- missing --
-- Whether there is doubt; which hours to fill now, those of about N events, one at least: from an hour (null: there is
-- nothing below that is in the rollups), and up to which instant raw events are in the rollups; what hourly_since is then;
-- whether more are missing. Below the seal raw events may be gone. No row: none is missing.
select z.in_doubt, z.fill_from::text, z.to_at::text,
       case when z.fill_from > z.from_at then z.fill_from else z.lowest end::text, coalesce(z.fill_from > z.from_at, false)
  from (select x.in_doubt, x.lowest, x.from_at, x.to_at,
               case when x.newest is not null and x.nth_from is null then x.from_at
                    when x.newest is not null then least(usage.hour_of(x.newest), x.nth_from) end as fill_from
  from (select b.lowest, b.in_doubt, b.from_at, b.to_at,
               greatest((select e.created_at from usage.event() e
                          where e.created_at >= b.from_at and e.created_at < b.to_at order by e.created_at desc limit 1),
                        (select l.created_at from usage.late_change l
                          where l.created_at >= b.from_at and l.created_at < b.to_at order by l.created_at desc limit 1)) as newest,
               (select usage.hours_from(e.created_at) from usage.event() e
                 where e.created_at >= b.from_at and e.created_at < b.to_at
                 order by e.created_at desc offset %(n)s limit 1) as nth_from
          from (select case when isfinite(s.sealed_until) then usage.hours_from(s.sealed_until) else '-infinity' end as lowest,
                       usage.doubt() is not null as in_doubt,
                       usage.hours_from(s.sealed_until) as from_at, least(s.hourly_since, s.frontier) as to_at
                  from usage.state s
                 where s.hourly_since > usage.hours_from(s.sealed_until)) b) x) z

-- delete_range --
-- Nobody has put any there.
with keys as (delete from usage.hourly_fact f where f.hour >= %(from)s::timestamptz and f.hour < %(to)s::timestamptz)
delete from usage.hourly_collection_fact f where f.hour >= %(from)s::timestamptz and f.hour < %(to)s::timestamptz

-- collect --
-- What folds have put into days of these hours: raw events, less the late changes not folded yet.
create temporary table delta on commit drop as
select 'hourly'::text as rollup, usage.hour_of(e.created_at) as hour, e.collection_id, e.resource_type, e.job_type, e.model_level,
       sum(net.sign)::bigint as event_count, coalesce(sum(usage.signed(net.sign, e.value)), 0) as total_value,
       coalesce(sum(usage.signed(net.sign, e.secondary)), 0) as secondary_value,
       coalesce(sum(net.sign) filter (where e.rejected), 0)::bigint as rejected_count, null::text as reason
  from {measured} e,
       lateral (select case when e.late then -e.sign else e.sign end) as net (sign)
 group by 2, 3, 4, 5, 6

-- counted --
select coalesce(sum(x.event_count), 0)::bigint from pg_temp.delta x

-- set_since --
update usage.state set hourly_since = %(since)s::timestamptz

-- analyze --
select usage.analyze_changed()

-- start_anew --
-- No row: it is off. Where the seal cuts an hour none of below it is left.
update usage.state
   set hourly_since = case when sealed_until = '-infinity' then sealed_until
                           when usage.hour_of(sealed_until) = sealed_until then least(hourly_since, sealed_until)
                           else usage.hours_from(sealed_until) end
 where hourly_since is not null
returning hourly_since

-- delete_unsealed --
delete from usage.{fact} f using usage.state s where f.hour >= s.sealed_until or f.hour < s.hourly_since
