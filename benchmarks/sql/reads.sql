-- Each raw query of the contract beside the read function that answers the same.

-- raw_by_collection --
select e.collection_id, n.title as collection_title, e.resource_type, count(*) as event_count,
       coalesce(sum(case e.resource_type
           when 'ai'        then (e.detail->>'tokens_in')::numeric
           when 'whisper'   then (e.detail->>'duration_seconds')::numeric
           when 'tts'       then (e.detail->>'characters')::numeric
           when 'cas'       then (e.detail->>'size_bytes')::numeric
           when 'bandwidth' then (e.detail->>'size_bytes')::numeric
           when 'livekit'   then (e.detail->>'participant_minutes')::numeric
       end), 0)::float8 as total_value,
       coalesce(sum((e.detail->>'tokens_out')::numeric) filter (where e.resource_type = 'ai'), 0)::float8 as secondary_value
  from public.resource_usage_log e left join public.nodes n on n.id = e.collection_id
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by e.collection_id, n.title, e.resource_type
 order by total_value desc, e.collection_id nulls last, e.resource_type collate "C" nulls last

-- by_collection --
select * from usage.by_collection(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)

-- raw_ai_drilldown --
select e.collection_id, n.title as collection_title, e.detail->>'job_type', e.detail->>'model_level',
       round(coalesce(sum((e.detail->>'tokens_in')::numeric), 0)) as tokens_in,
       round(coalesce(sum((e.detail->>'tokens_out')::numeric), 0)) as tokens_out, count(*) as event_count
  from public.resource_usage_log e left join public.nodes n on n.id = e.collection_id
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
   and e.resource_type = 'ai'
 group by e.collection_id, n.title, e.detail->>'job_type', e.detail->>'model_level'
 order by tokens_in desc, e.collection_id nulls last,
          (e.detail->>'job_type') collate "C" nulls last, (e.detail->>'model_level') collate "C" nulls last

-- ai_drilldown --
select * from usage.ai_drilldown(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)

-- raw_daily --
select date_trunc('day', e.created_at, 'UTC') as starts_at, e.resource_type, count(*) as event_count,
       coalesce(sum(case e.resource_type
           when 'ai'        then (e.detail->>'tokens_in')::numeric
           when 'whisper'   then (e.detail->>'duration_seconds')::numeric
           when 'tts'       then (e.detail->>'characters')::numeric
           when 'cas'       then (e.detail->>'size_bytes')::numeric
           when 'bandwidth' then (e.detail->>'size_bytes')::numeric
           when 'livekit'   then (e.detail->>'participant_minutes')::numeric
       end), 0)::float8 as total_value
  from public.resource_usage_log e
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by 1, 2
 order by 1 desc, e.resource_type collate "C" nulls last

-- daily --
select starts_at, resource_type, event_count, total_value
  from usage.daily_series(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)

-- raw_daily_of_zone --
-- By days that begin half an hour off the whole hour.
select (e.created_at at time zone 'Asia/Kolkata')::date as day, e.resource_type, count(*) as event_count,
       coalesce(sum(case e.resource_type
           when 'ai'        then (e.detail->>'tokens_in')::numeric
           when 'whisper'   then (e.detail->>'duration_seconds')::numeric
           when 'tts'       then (e.detail->>'characters')::numeric
           when 'cas'       then (e.detail->>'size_bytes')::numeric
           when 'bandwidth' then (e.detail->>'size_bytes')::numeric
           when 'livekit'   then (e.detail->>'participant_minutes')::numeric
       end), 0)::float8 as total_value
  from public.resource_usage_log e
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by 1, 2
 order by 1 desc, e.resource_type collate "C" nulls last

-- daily_of_zone --
select day, resource_type, event_count, total_value
  from usage.daily_series(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid, 'Asia/Kolkata')

-- overview --
select usage.overview(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)::text

-- one_process --
set local max_parallel_workers_per_gather = 0
