-- A view that each statement brings up to date. It knows no FILTER and no date_trunc() with a time zone.

-- prepare --
create extension pg_ivm

-- build --
select pgivm.create_immv('public.daily', $$
select date_bin('1 day', created_at, '2000-01-01 00:00:00+00') as day, collection_id, resource_type,
       detail->>'job_type' as job_type, detail->>'model_level' as model_level, count(*) as event_count,
       sum(case resource_type
           when 'ai'        then (detail->>'tokens_in')::numeric
           when 'whisper'   then (detail->>'duration_seconds')::numeric
           when 'tts'       then (detail->>'characters')::numeric
           when 'cas'       then (detail->>'size_bytes')::numeric
           when 'bandwidth' then (detail->>'size_bytes')::numeric
           when 'livekit'   then (detail->>'participant_minutes')::numeric
       end) as total_value,
       sum(case resource_type when 'ai' then (detail->>'tokens_out')::numeric end) as secondary_value
  from public.resource_usage_log
 group by 1, 2, 3, 4, 5
$$);

create index daily_collection on public.daily (collection_id, day)

-- read --
-- Added up before titles are joined: grouped by the title too, the planner expects many groups, and sorts.
select s.collection_id, n.title, s.resource_type, s.event_count, s.total_value, s.secondary_value
  from (select d.collection_id, d.resource_type, sum(d.event_count)::bigint as event_count,
               coalesce(sum(d.total_value), 0)::float8 as total_value, coalesce(sum(d.secondary_value), 0)::float8 as secondary_value
          from public.daily d
         where d.day >= %(since)s::timestamptz and d.day < %(until)s::timestamptz
           and (%(collection)s::uuid is null or d.collection_id = %(collection)s::uuid)
         group by d.collection_id, d.resource_type) s
  left join public.nodes n on n.id = s.collection_id
 order by s.total_value desc, s.collection_id nulls last, s.resource_type collate "C" nulls last

-- size --
select pg_total_relation_size('public.daily')

-- version --
select extversion from pg_extension where extname = 'pg_ivm'
