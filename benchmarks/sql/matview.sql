-- A plain materialized view. Keys are never null in it, or REFRESH … CONCURRENTLY would replace all rows with a null.

-- build --
create schema rollup;

create materialized view rollup.daily as
select date_trunc('day', e.created_at, 'UTC') as day,
       coalesce(e.collection_id, '00000000-0000-0000-0000-000000000000') as collection_id, e.resource_type,
       coalesce(e.detail->>'job_type', '') as job_type, coalesce(e.detail->>'model_level', '') as model_level,
       count(*) as event_count,
       coalesce(sum(case e.resource_type
           when 'ai'        then (e.detail->>'tokens_in')::numeric
           when 'whisper'   then (e.detail->>'duration_seconds')::numeric
           when 'tts'       then (e.detail->>'characters')::numeric
           when 'cas'       then (e.detail->>'size_bytes')::numeric
           when 'bandwidth' then (e.detail->>'size_bytes')::numeric
           when 'livekit'   then (e.detail->>'participant_minutes')::numeric
       end), 0) as total_value,
       coalesce(sum((e.detail->>'tokens_out')::numeric) filter (where e.resource_type = 'ai'), 0) as secondary_value
  from public.resource_usage_log e
 group by 1, 2, 3, 4, 5;

create unique index daily_key on rollup.daily (day, collection_id, resource_type, job_type, model_level);

create index daily_collection on rollup.daily (collection_id, day)

-- refresh --
refresh materialized view concurrently rollup.daily

-- read --
-- Added up before titles are joined: grouped by the title too, the planner expects many groups, and sorts.
select s.collection_id, n.title, s.resource_type, s.event_count, s.total_value, s.secondary_value
  from (select nullif(d.collection_id, '00000000-0000-0000-0000-000000000000') as collection_id, d.resource_type, sum(d.event_count)::bigint as event_count,
               sum(d.total_value)::float8 as total_value, sum(d.secondary_value)::float8 as secondary_value
          from rollup.daily d
         where d.day >= %(since)s::timestamptz and d.day < %(until)s::timestamptz
           and (%(collection)s::uuid is null or d.collection_id = %(collection)s::uuid)
         group by d.collection_id, d.resource_type) s
  left join public.nodes n on n.id = s.collection_id
 order by s.total_value desc, s.collection_id nulls last, s.resource_type collate "C" nulls last

-- size --
select pg_total_relation_size('rollup.daily')
