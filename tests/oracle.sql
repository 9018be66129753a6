-- The oracle: the raw query of the contract, which also reads malformed values by the grammar, in SQL of its own.
-- It calls nothing of schema usage. Parameters: since, until, collection, zone; {source} and {titles} are filled in.

-- number --
-- Created by the tests in schema oracle: value of one member of detail, or null.
create function oracle.number(detail jsonb, key text) returns numeric language plpgsql immutable as $$
declare
    member jsonb := case when jsonb_typeof(detail) = 'object' then detail -> key end;
    n      numeric;
begin
    if jsonb_typeof(member) = 'number' then
        n := member #>> '{}';
    elsif jsonb_typeof(member) = 'string'
        and regexp_like((member #>> '{}') collate "C",
                        '^[ \t\n\r\f\v]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t\n\r\f\v]*$')
    then
        n := trim(both e' \t\n\r\f\v' from member #>> '{}');
    end if;
    return case when abs(n) <= 1000000000000000000 and scale(n) <= 40 then n end;
exception when numeric_value_out_of_range or invalid_text_representation then
    return null;
end $$

-- key_text --
create function oracle.key_text(t text) returns text language sql immutable as $$
    select case when char_length(t) > 128 then substr(t, 1, 96) || chr(8230) || md5(t) else t end
$$

-- metric --
create function oracle.value(resource_type text, detail jsonb) returns numeric language sql immutable as $$
    select case resource_type
        when 'ai'        then oracle.number(detail, 'tokens_in')
        when 'whisper'   then oracle.number(detail, 'duration_seconds')
        when 'tts'       then oracle.number(detail, 'characters')
        when 'cas'       then oracle.number(detail, 'size_bytes')
        when 'bandwidth' then oracle.number(detail, 'size_bytes')
        when 'livekit'   then oracle.number(detail, 'participant_minutes')
    end
$$

-- local_date --
-- The day of date_trunc('day', created_at, zone), with the end buckets.
create function oracle.local_date(at timestamptz, zone text) returns date language sql immutable as $$
    select case when at < timestamptz '0001-01-01 00:00:00+00' - interval '3 days' then date '-infinity'
                when at > timestamptz '10000-01-01 00:00:00+00' + interval '3 days' then date 'infinity'
                when (at at time zone zone) < timestamp '0001-01-01' then date '-infinity'
                when (at at time zone zone) >= timestamp '10000-01-01' then date 'infinity'
                else (at at time zone zone)::date end
$$

-- by_collection --
select e.collection_id, n.title, oracle.key_text(e.resource_type), count(*),
       coalesce(sum(oracle.value(e.resource_type, e.detail)), 0)::float8 as total_value,
       coalesce(sum(oracle.number(e.detail, 'tokens_out')) filter (where e.resource_type = 'ai'), 0)::float8
  from {source} e left join {titles} n on n.id = e.collection_id
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by e.collection_id, n.title, oracle.key_text(e.resource_type)
 order by total_value desc, e.collection_id nulls last, oracle.key_text(e.resource_type) collate "C" nulls last

-- ai_drilldown --
select e.collection_id, n.title, oracle.key_text(e.detail ->> 'job_type'), oracle.key_text(e.detail ->> 'model_level'),
       round(coalesce(sum(oracle.number(e.detail, 'tokens_in')), 0)) as tokens_in,
       round(coalesce(sum(oracle.number(e.detail, 'tokens_out')), 0)), count(*)
  from {source} e left join {titles} n on n.id = e.collection_id
 where e.resource_type = 'ai'
   and e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by 1, 2, 3, 4
 order by tokens_in desc, e.collection_id nulls last,
          oracle.key_text(e.detail ->> 'job_type') collate "C" nulls last,
          oracle.key_text(e.detail ->> 'model_level') collate "C" nulls last

-- daily --
select oracle.local_date(e.created_at, %(zone)s)::text as day, oracle.key_text(e.resource_type) collate "C" as resource_type, count(*),
       coalesce(sum(oracle.value(e.resource_type, e.detail)), 0)::float8
  from {source} e
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by oracle.local_date(e.created_at, %(zone)s), 2
 order by oracle.local_date(e.created_at, %(zone)s) desc, resource_type nulls last

-- rejected --
select count(*)
  from {source} e
 where (e.resource_type in ('ai', 'whisper', 'tts', 'cas', 'bandwidth', 'livekit'))
   and exists (select from unnest(case e.resource_type when 'ai' then array['tokens_in', 'tokens_out']
                                       when 'whisper' then array['duration_seconds'] when 'tts' then array['characters']
                                       when 'livekit' then array['participant_minutes'] else array['size_bytes'] end) key
                where jsonb_typeof(e.detail) = 'object' and jsonb_typeof(e.detail -> key) <> 'null'
                  and oracle.number(e.detail, key) is null)
   and e.created_at is not null

-- live --
-- What daily_live must show, every day and key.
select oracle.local_date(e.created_at, %(zone)s)::text, e.collection_id::text, oracle.key_text(e.resource_type),
       oracle.key_text(e.detail ->> 'job_type'), oracle.key_text(e.detail ->> 'model_level'), count(*),
       coalesce(sum(oracle.value(e.resource_type, e.detail)), 0),
       coalesce(sum(oracle.number(e.detail, 'tokens_out')) filter (where e.resource_type = 'ai'), 0)
  from {source} e
 where e.created_at is not null
 group by oracle.local_date(e.created_at, %(zone)s), 2, 3, 4, 5

-- live_months --
-- What monthly_live must show: the months of the above, which is filled in.
select case when l.day in ('-infinity', 'infinity') then l.day else date_trunc('month', l.day::timestamp)::date::text end,
       l.collection_id, l.resource_type, l.job_type, l.model_level,
       sum(l.event_count)::bigint, sum(l.total_value), sum(l.secondary_value)
  from ({live}) l (day, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value)
 group by 1, 2, 3, 4, 5

-- totals --
-- Any keys, as an array, and a grain; this window only. Values are null where resource types of different units meet.
select case %(grain)s when 'day' then d.day when 'week' then date_trunc('week', d.day::timestamp)::date
                      when 'month' then date_trunc('month', d.day::timestamp)::date end::text as bucket,
       case when 'collection' = any(%(by)s::text[]) then e.collection_id end as collection_id,
       case when 'resource_type' = any(%(by)s::text[]) then oracle.key_text(e.resource_type) end as resource_type,
       case when 'job_type' = any(%(by)s::text[]) then oracle.key_text(e.detail ->> 'job_type') end as job_type,
       case when 'model_level' = any(%(by)s::text[]) then oracle.key_text(e.detail ->> 'model_level') end as model_level,
       count(*),
       case when count(distinct u.unit) < 2 then coalesce(sum(oracle.value(e.resource_type, e.detail)), 0)::float8 end,
       coalesce(sum(oracle.number(e.detail, 'tokens_out')) filter (where e.resource_type = 'ai'), 0)::float8
  from {source} e,
       lateral (select oracle.local_date(e.created_at, %(zone)s)) d (day),
       lateral (select case e.resource_type when 'ai' then 'tokens' when 'whisper' then 'seconds' when 'tts' then 'characters'
                                            when 'cas' then 'bytes' when 'bandwidth' then 'bytes' when 'livekit' then 'minutes' end) u (unit)
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by 1, 2, 3, 4, 5

-- export --
-- Rows of an export: bucket of a grain and whole key, with the title, in order; exact decimals without trailing zeros.
select b.bucket::text, e.collection_id::text, n.title, oracle.key_text(e.resource_type) collate "C" as resource_type,
       oracle.key_text(e.detail ->> 'job_type') collate "C" as job_type,
       oracle.key_text(e.detail ->> 'model_level') collate "C" as model_level, count(*),
       trim_scale(coalesce(sum(oracle.value(e.resource_type, e.detail)), 0)),
       trim_scale(coalesce(sum(oracle.number(e.detail, 'tokens_out')) filter (where e.resource_type = 'ai'), 0))
  from {source} e left join {titles} n on n.id = e.collection_id,
       lateral (select oracle.local_date(e.created_at, %(zone)s)) d (day),
       lateral (select case when %(grain)s = 'day' or not isfinite(d.day) then d.day
                            else date_trunc('month', d.day::timestamp)::date end) b (bucket)
 where e.created_at >= %(since)s::timestamptz and (%(until)s::timestamptz is null or e.created_at < %(until)s::timestamptz)
   and (%(collection)s::uuid is null or e.collection_id = %(collection)s::uuid)
 group by b.bucket, e.collection_id, n.title, 4, 5, 6
 order by b.bucket, e.collection_id nulls last, 4 nulls last, 5 nulls last, 6 nulls last
