-- Sample data: the host's two tables, filled by the server. Nothing is random: every choice is made from the bits of a
-- row number's hash, so that the same seed and the same end give the same rows.

-- present --
select to_regclass('public.nodes') is not null or to_regclass('public.resource_usage_log') is not null

-- now --
-- Microseconds since the epoch: a number, whatever loaders the connection has.
select (extract(epoch from clock_timestamp()) * 1000000)::bigint

-- create_nodes --
create table public.nodes (id uuid, title text, constraint nodes_pkey primary key (id))

-- create_log --
create table public.resource_usage_log (
    id bigint generated always as identity, collection_id uuid, resource_type text, detail jsonb,
    created_at timestamptz not null
)

-- set_sequence --
-- Rows bring their numbers along, which is cheaper than to ask for each.
select setval(pg_get_serial_sequence('public.resource_usage_log', 'id'), %(events)s)

-- create_index --
create index resource_usage_log_created_at on public.resource_usage_log (created_at)

-- analyze --
analyze public.nodes, public.resource_usage_log

-- fill_nodes --
-- The largest collection first.
with filled as (
    insert into public.nodes (id, title)
    select md5(%(seed)s::text || '/' || i)::uuid, t.title
      from unnest(%(titles)s::text[]) with ordinality t (title, i)
    returning id
)
select array_agg(md5(%(seed)s::text || '/' || i)::uuid::text order by i)
  from generate_series(1, (select count(*) from filled)) i

-- fill_log --
-- Rows [first, last] of one day, in order of arrival. Share x of the day's events has come by the share
-- x + sin(2 pi x) / 10 of the day: few at night. Sizes have long tails: squares and cubes of uniform numbers.
-- Collections are drawn in proportion to 1 / rank ^ skew.
insert into public.resource_usage_log (id, collection_id, resource_type, detail, created_at) overriding system value
select r.n, r.collection_id, r.resource_type,
       case
           when r.malformed then (case r.n / %(step)s %% 3
               when 0 then '{"tokens_in": "n/a", "duration_seconds": "n/a", "size_bytes": "n/a"}'
               when 1 then '{"tokens_in": true, "duration_seconds": true, "size_bytes": true}'
               else '{}' end)
           when r.resource_type = 'ai' then '{"job_type": "'
               || case r.job when 0 then 'chat' when 1 then 'summary' when 2 then 'search' when 3 then 'embedding'
                             else 'agent' end
               || '", "tokens_in": ' || 20 + (r.big * r.big >> 18)
               || ', "tokens_out": ' || (r.big * r.small >> 17)
               || ', "model_level": "' || case r.level when 0 then 'large' when 1 then 'medium' else 'small' end || '"}'
           when r.resource_type = 'bandwidth' then '{"size_bytes": ' || 200 + (r.big * r.big >> 4) || '}'
           when r.resource_type = 'cas' then '{"size_bytes": ' || 1000 + (r.big * r.big * r.small >> 12) || '}'
           when r.resource_type = 'whisper' then '{"duration_seconds": ' || (100 + (r.big * r.big >> 14)) * 0.01 || '}'
           when r.resource_type = 'tts' then '{"characters": ' || 10 + (r.big * r.big >> 19) || '}'
           when r.resource_type = 'livekit' then '{"participant_minutes": ' || (1 + (r.big * r.big >> 19)) * 0.1 || '}'
           else '{"rows": ' || r.small || '}'
       end::jsonb,
       case when r.late and r.at - r.delay >= %(since)s::timestamptz then r.at - r.delay else r.at end
  from (select d.n,
               case when d.a & 4095 >= 82
                    then (%(ids)s::uuid[])[least(%(collections)s, floor(
                        case when %(skew)s = 1.0::float8 then power(%(collections)s + 1.0::float8, d.u)
                             else power(1 + d.u * (power(%(collections)s + 1.0::float8, 1 - %(skew)s::float8) - 1),
                                        1 / (1 - %(skew)s::float8)) end))::integer] end
                   as collection_id,
               case when d.kind < 512 then 'ai'
                    when d.kind < 690 then 'bandwidth'
                    when d.kind < 812 then 'cas'
                    when d.kind < 894 then 'whisper'
                    when d.kind < 966 then 'tts'
                    when d.kind < 1014 then 'livekit'
                    else 'export' end as resource_type,
               (d.a >> 46 & 255) %% 5 as job,
               (d.a >> 54 & 255) %% 3 as level,
               d.b & 65535 as big,
               d.b >> 16 & 32767 as small,
               d.b >> 31 & 65535 < %(late)s as late,
               interval '1 hour' * (24 + (d.b >> 47 & 255)) as delay,
               %(step)s > 0 and d.n %% greatest(%(step)s, 1) = %(step)s / 2 as malformed,
               %(midnight)s::timestamptz
                   + interval '1 day' * (d.x + sin(6.283185307179586::float8 * d.x) / 10) as at
          from (select n,
                       hashint8extended(n, %(seed)s) as a,
                       hashint8extended(n, %(seed)s + 1) as b,
                       (hashint8extended(n, %(seed)s) >> 36 & 1023) * %(kinds)s / 1024 as kind,
                       (hashint8extended(n, %(seed)s) >> 12 & 16777215) / 16777216.0::float8 as u,
                       %(share_from)s::float8 + (%(share_to)s::float8 - %(share_from)s::float8)
                           * ((n - %(first)s + 0.5::float8) / (%(last)s - %(first)s + 1)) as x
                  from generate_series(%(first)s::bigint, %(last)s::bigint) n
                offset 0) d
        offset 0) r
