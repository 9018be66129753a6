-- What everybody writes first: a row trigger that adds each event to its day's row.

-- build --
create schema rollup;

create table rollup.daily (
    day timestamptz not null, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint not null, total_value numeric not null, secondary_value numeric not null,
    unique nulls not distinct (day, collection_id, resource_type, job_type, model_level)
);

create function rollup.value(resource_type text, detail jsonb) returns numeric language sql immutable
return coalesce(case resource_type
    when 'ai'        then (detail->>'tokens_in')::numeric
    when 'whisper'   then (detail->>'duration_seconds')::numeric
    when 'tts'       then (detail->>'characters')::numeric
    when 'cas'       then (detail->>'size_bytes')::numeric
    when 'bandwidth' then (detail->>'size_bytes')::numeric
    when 'livekit'   then (detail->>'participant_minutes')::numeric
end, 0);

create function rollup.secondary(resource_type text, detail jsonb) returns numeric language sql immutable
return coalesce(case resource_type when 'ai' then (detail->>'tokens_out')::numeric end, 0);

insert into rollup.daily
select date_trunc('day', created_at, 'UTC'), collection_id, resource_type, detail->>'job_type', detail->>'model_level',
       count(*), sum(rollup.value(resource_type, detail)), sum(rollup.secondary(resource_type, detail))
  from public.resource_usage_log
 group by 1, 2, 3, 4, 5;

create index daily_collection on rollup.daily (collection_id, day);

create function rollup.keep() returns trigger language plpgsql as $$
begin
    if tg_op in ('UPDATE', 'DELETE') then
        update rollup.daily d
           set event_count = d.event_count - 1,
               total_value = d.total_value - rollup.value(old.resource_type, old.detail),
               secondary_value = d.secondary_value - rollup.secondary(old.resource_type, old.detail)
         where d.day = date_trunc('day', old.created_at, 'UTC')
           and d.collection_id is not distinct from old.collection_id and d.resource_type is not distinct from old.resource_type
           and d.job_type is not distinct from old.detail->>'job_type' and d.model_level is not distinct from old.detail->>'model_level';
    end if;
    if tg_op in ('INSERT', 'UPDATE') then
        insert into rollup.daily as d
        values (date_trunc('day', new.created_at, 'UTC'), new.collection_id, new.resource_type, new.detail->>'job_type',
                new.detail->>'model_level', 1, rollup.value(new.resource_type, new.detail),
                rollup.secondary(new.resource_type, new.detail))
        on conflict (day, collection_id, resource_type, job_type, model_level) do update
           set event_count = d.event_count + 1,
               total_value = d.total_value + excluded.total_value,
               secondary_value = d.secondary_value + excluded.secondary_value;
    end if;
    return null;
end $$;

create trigger keep after insert or update or delete on public.resource_usage_log
    for each row execute function rollup.keep()

-- read --
-- Added up before titles are joined: grouped by the title too, the planner expects many groups, and sorts.
select s.collection_id, n.title, s.resource_type, s.event_count, s.total_value, s.secondary_value
  from (select d.collection_id, d.resource_type, sum(d.event_count)::bigint as event_count,
               sum(d.total_value)::float8 as total_value, sum(d.secondary_value)::float8 as secondary_value
          from rollup.daily d
         where d.day >= %(since)s::timestamptz and d.day < %(until)s::timestamptz
           and (%(collection)s::uuid is null or d.collection_id = %(collection)s::uuid)
           and d.event_count <> 0
         group by d.collection_id, d.resource_type) s
  left join public.nodes n on n.id = s.collection_id
 order by s.total_value desc, s.collection_id nulls last, s.resource_type collate "C" nulls last

-- size --
select pg_total_relation_size('rollup.daily')
