-- A hypertable with chunks of a week; a continuous aggregate by day and whole key, real-time, its sums float8, which is
-- faster than numeric.

-- prepare --
create extension timescaledb;

select create_hypertable('public.resource_usage_log', 'created_at', chunk_time_interval => interval '7 days', migrate_data => true)

-- build --
create materialized view public.daily with (timescaledb.continuous, timescaledb.materialized_only = false) as
select time_bucket('1 day', created_at) as day, collection_id, resource_type, detail->>'job_type' as job_type,
       detail->>'model_level' as model_level, count(*) as event_count,
       sum(case resource_type
           when 'ai'        then (detail->>'tokens_in')::float8
           when 'whisper'   then (detail->>'duration_seconds')::float8
           when 'tts'       then (detail->>'characters')::float8
           when 'cas'       then (detail->>'size_bytes')::float8
           when 'bandwidth' then (detail->>'size_bytes')::float8
           when 'livekit'   then (detail->>'participant_minutes')::float8
       end) as total_value,
       sum(case resource_type when 'ai' then (detail->>'tokens_out')::float8 end) as secondary_value
  from public.resource_usage_log
 group by 1, 2, 3, 4, 5
  with no data;

call refresh_continuous_aggregate('public.daily', null, null)

-- refresh --
call refresh_continuous_aggregate('public.daily', null, null)

-- read --
-- Added up before titles are joined: grouped by the title too, the planner expects many groups, and sorts.
select s.collection_id, n.title, s.resource_type, s.event_count, s.total_value, s.secondary_value
  from (select d.collection_id, d.resource_type, sum(d.event_count)::bigint as event_count,
               coalesce(sum(d.total_value), 0) as total_value, coalesce(sum(d.secondary_value), 0) as secondary_value
          from public.daily d
         where d.day >= %(since)s::timestamptz and d.day < %(until)s::timestamptz
           and (%(collection)s::uuid is null or d.collection_id = %(collection)s::uuid)
         group by d.collection_id, d.resource_type) s
  left join public.nodes n on n.id = s.collection_id
 order by s.total_value desc, s.collection_id nulls last, s.resource_type collate "C" nulls last

-- size --
select hypertable_size(format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass)
  from timescaledb_information.continuous_aggregates where view_name = 'daily'

-- version --
select extversion from pg_extension where extname = 'timescaledb'
