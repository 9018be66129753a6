-- What the benchmark runs: each raw query of the contract beside the read function that answers the same.

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

-- overview --
select usage.overview(%(since)s::timestamptz, %(until)s::timestamptz, %(collection)s::uuid)::text

-- instants --
-- To the second: from about noon on, where a window cuts most, whenever the benchmark is run. The first of 365 days has
-- events from its middle on only.
select now()::text, date_trunc('day', now(), 'UTC')::text,
       array[(date_trunc('day', now(), 'UTC') - interval '30 days' + interval '12:00:01')::text,
             (date_trunc('day', now(), 'UTC') - interval '364 days' + interval '12:00:01')::text],
       array[(date_trunc('day', now(), 'UTC') - interval '30 days')::text,
             (date_trunc('day', now(), 'UTC') - interval '365 days')::text]

-- middling_collection --
select collection_id::text from usage.monthly_collection
 where collection_id is not null group by 1 order by sum(event_count) desc offset 20 limit 1

-- add_tail --
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select collection_id, resource_type, detail, clock_timestamp()
  from (select * from public.resource_usage_log order by id desc limit %(n)s) newest

-- change_the_past --
with changed as (
    update public.resource_usage_log set collection_id = null
     where created_at > now() - interval '40 days' and created_at < now() - interval '39 days' and resource_type = 'cas'
)
delete from public.resource_usage_log
 where created_at > now() - interval '20 days' and created_at < now() - interval '20 days' + interval '30 minutes'

-- create_plain --
-- The same rows and indexes, without capture.
create table public.plain (like public.resource_usage_log including all)

-- fill_plain --
insert into public.plain overriding system value select * from public.resource_usage_log

-- tail_events --
-- Copied to the client: what an importer of new events would send.
copy (select collection_id, resource_type, detail, now() + interval '1 microsecond' * row_number() over (order by id)
        from public.resource_usage_log order by id desc limit {n}) to stdout

-- late_events --
copy (select collection_id, resource_type, detail, created_at - interval '2 days'
        from public.resource_usage_log order by id desc limit {n}) to stdout

-- insert_one --
insert into {table} (collection_id, resource_type, detail, created_at)
values (%s, 'ai', '{{"job_type": "chat", "model_level": "large", "tokens_in": 1200, "tokens_out": 300}}', clock_timestamp())

-- sizes --
select pg_total_relation_size('public.resource_usage_log'),
       (select sum(pg_total_relation_size(r::regclass))
          from unnest(array['usage.daily_fact', 'usage.daily_collection_fact', 'usage.daily_total',
                            'usage.monthly_fact', 'usage.monthly_collection_fact', 'usage.key']) r)::bigint
