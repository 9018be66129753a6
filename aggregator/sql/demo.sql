-- Run-time SQL of the demo.

-- raw --
-- The raw query of the contract, beside which the demo times and compares: it reads the source and nothing of ours.
-- Malformed values are skipped, where the contract's own would fail.
select e.collection_id, n.title as collection_title, e.resource_type, count(*) as event_count,
       coalesce(sum(case when jsonb_typeof(e.detail -> m.key) = 'number' then (e.detail ->> m.key)::numeric end), 0)::float8
           as total_value,
       coalesce(sum(case when e.resource_type = 'ai' and jsonb_typeof(e.detail -> 'tokens_out') = 'number'
                         then (e.detail ->> 'tokens_out')::numeric end), 0)::float8 as secondary_value
  from public.resource_usage_log e
  left join public.nodes n on n.id = e.collection_id
  left join (values ('ai', 'tokens_in'), ('whisper', 'duration_seconds'), ('tts', 'characters'), ('cas', 'size_bytes'),
                    ('bandwidth', 'size_bytes'), ('livekit', 'participant_minutes')) m (resource_type, key)
         on m.resource_type = e.resource_type
 where e.created_at >= now() - make_interval(days => %(days)s)
 group by e.collection_id, n.title, e.resource_type
 order by total_value desc, e.collection_id nulls last, e.resource_type collate "C" nulls last

-- rollups --
select r.collection_id, r.collection_title, r.resource_type, r.event_count, r.total_value, r.secondary_value
  from usage.by_collection(now() - make_interval(days => %(days)s)) r

-- correct --
update public.resource_usage_log set collection_id = null
 where id in (select e.id from public.resource_usage_log e
               where e.created_at > now() - interval '40 days' order by e.id limit %(limit)s)

-- delete --
delete from public.resource_usage_log
 where id in (select e.id from public.resource_usage_log e
               where e.created_at > now() - interval '20 days' order by e.id limit %(limit)s)
