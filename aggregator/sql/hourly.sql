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
-- Whether there is doubt; below the seal raw events may be gone: what hourly_since is in the end; between which instants hours
-- are missing and raw events in the rollups. No row: none is missing.
select usage.doubt() is not null,
       case when isfinite(s.sealed_until) then usage.hours_from(s.sealed_until) else '-infinity' end::text,
       usage.hours_from(s.sealed_until)::text, least(s.hourly_since, s.frontier)::text
  from usage.state s
 where s.hourly_since > usage.hours_from(s.sealed_until)

-- newest --
-- From which hour on to fill: the newest ones with about N events, one at least; null: there is nothing to fill.
select case when n.nth is null then %(from)s::timestamptz else least(usage.hour_of(n.newest), usage.hours_from(n.nth)) end::text
  from (select greatest((select e.created_at from usage.event() e
                          where e.created_at >= %(from)s::timestamptz and e.created_at < %(to)s::timestamptz
                          order by e.created_at desc limit 1),
                        (select l.created_at from usage.late_change l
                          where l.created_at >= %(from)s::timestamptz and l.created_at < %(to)s::timestamptz
                          order by l.created_at desc limit 1)) as newest,
               (select e.created_at from usage.event() e
                 where e.created_at >= %(from)s::timestamptz and e.created_at < %(to)s::timestamptz
                 order by e.created_at desc offset %(n)s limit 1) as nth
       offset 0) n
 where n.newest is not null

-- delete_range --
-- Nobody has put any there.
with keys as (delete from usage.hourly_fact f where f.hour >= %(from)s::timestamptz and f.hour < %(to)s::timestamptz)
delete from usage.hourly_collection_fact f where f.hour >= %(from)s::timestamptz and f.hour < %(to)s::timestamptz

-- collect --
-- What folds have put into days of these hours: raw events, less the late changes not folded yet.
(select usage.hour_of(e.created_at) as bucket, e.collection_id, e.resource_type, e.job_type, e.model_level,
       sum(net.sign)::bigint as event_count, coalesce(sum(usage.signed(net.sign, e.value)), 0) as total_value,
       coalesce(sum(usage.signed(net.sign, e.secondary)), 0) as secondary_value,
       coalesce(sum(net.sign) filter (where e.rejected), 0)::bigint as rejected_count, false as malformed
  from {measured} e,
       lateral (select case when e.late then -e.sign else e.sign end) as net (sign)
 group by 1, 2, 3, 4, 5)

-- counted --
select coalesce(sum(x.event_count), 0)::bigint from pg_temp.hourly_collection_delta x

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
