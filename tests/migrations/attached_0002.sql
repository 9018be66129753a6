-- What release 0002 left in a database that was attached and refreshed in the zone Europe/Oslo, besides its migration:
-- functions, triggers, events, rollups and state, dumped from it. Frozen, as the release is.
CREATE OR REPLACE FUNCTION usage.capture()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$-- The source is known by its name, so a restored database needs no new function; PUBLIC may execute this (or the
-- host's role could not create a partition), so a trigger on any other table does nothing.
declare
    frontier timestamptz;
    seal     timestamptz;
begin
    if not coalesce(tg_relid = pg_catalog.to_regclass('public.resource_usage_log')::oid
                    or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass('public.resource_usage_log')::oid, false) then
        return null;
    end if;
    if tg_op = 'INSERT' then
        -- WHEN has found it late, or without an instant. Whatever comes to be there adds, also below the seal.
        if new.created_at is not null then
            insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
            values (1, new.created_at, new.collection_id, new.resource_type, new.detail, tg_relid);
        end if;
        return null;
    end if;
    frontier := usage.frontier_for_writers();
    seal := usage.seal_for_writers();
    -- Deletes and updates below the seal are a purge, and ignored.
    if old.created_at is not null
       and coalesce(old.created_at < frontier, true) and coalesce(old.created_at >= seal, true)
    then
        insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
        values (-1, old.created_at, old.collection_id, old.resource_type, old.detail, tg_relid);
    end if;
    if tg_op = 'UPDATE' and new.created_at is not null
       and coalesce(new.created_at < frontier, true)
       and coalesce(old.created_at >= seal or new.created_at >= seal, true)
    then
        insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
        values (1, new.created_at, new.collection_id, new.resource_type, new.detail, tg_relid);
    end if;
    return null;
end$function$;
CREATE OR REPLACE FUNCTION usage.capture_truncate()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$begin
    if coalesce(tg_relid = pg_catalog.to_regclass('public.resource_usage_log')::oid
                or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass('public.resource_usage_log')::oid, false) then
        insert into usage.truncate_marker (truncated) values (tg_relid::regclass::text);
    end if;
    return null;
end$function$;
CREATE OR REPLACE FUNCTION usage.collection()
 RETURNS TABLE(id uuid, title text)
 LANGUAGE sql
 STABLE
AS $function$select n.id::pg_catalog.uuid, n.title::pg_catalog.text from public.nodes n$function$;
CREATE OR REPLACE FUNCTION usage.event()
 RETURNS TABLE(created_at timestamp with time zone, collection_id uuid, resource_type text, detail jsonb)
 LANGUAGE sql
 STABLE
AS $function$select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text, e.detail::pg_catalog.jsonb from public.resource_usage_log e$function$;
CREATE TRIGGER usage_delete AFTER DELETE ON public.resource_usage_log FOR EACH ROW WHEN ((COALESCE((old.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / ('1000000'::numeric)::double precision))), true) AND COALESCE((old.created_at >= to_timestamp(((pg_sequence_last_value('usage.seal_seq'::regclass))::double precision / ('1000000'::numeric)::double precision))), true))) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_delete;
CREATE TRIGGER usage_insert AFTER INSERT ON public.resource_usage_log FOR EACH ROW WHEN (COALESCE((new.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / ('1000000'::numeric)::double precision))), true)) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_insert;
CREATE TRIGGER usage_truncate AFTER TRUNCATE ON public.resource_usage_log FOR EACH STATEMENT EXECUTE FUNCTION usage.capture_truncate();
alter table public.resource_usage_log enable always trigger usage_truncate;
CREATE TRIGGER usage_update AFTER UPDATE ON public.resource_usage_log FOR EACH ROW WHEN (((COALESCE((old.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / ('1000000'::numeric)::double precision))), true) OR COALESCE((new.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / ('1000000'::numeric)::double precision))), true)) AND ((old.created_at IS DISTINCT FROM new.created_at) OR (old.collection_id IS DISTINCT FROM new.collection_id) OR (old.resource_type IS DISTINCT FROM new.resource_type) OR ((old.detail)::text IS DISTINCT FROM (new.detail)::text)))) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_update;
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values
    ('00000000-0000-0000-0000-000000000002', 'ai', '{"tokens_in": 1.25, "tokens_out": "1", "job_type": "chat", "model_level": "m1"}', '2024-01-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000003', 'ai', '{"tokens_in": 2.25, "tokens_out": "2", "job_type": "chat", "model_level": "m0"}', '2024-02-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000001', 'ai', '{"tokens_in": 3.25, "job_type": "chat"}', '2024-04-28 23:30+01'),
    (null, 'tts', '{"characters": 30}', '2024-05-01 00:00+00'),
    (null, 'odd', '{}', '2024-05-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000007', 'cas', '{"size_bytes": "many"}', '2024-06-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000001', 'whisper', '{"duration_seconds": 0.5}', '2024-08-29 00:30+02');
insert into usage.daily select ('(2024-01-28,00000000-0000-0000-0000-000000000002,ai,chat,m1,1,1.25,1,0)'::usage.daily).*;
insert into usage.daily select ('(2024-02-28,00000000-0000-0000-0000-000000000003,ai,chat,m0,1,2.25,2,0)'::usage.daily).*;
insert into usage.daily select ('(2024-04-29,00000000-0000-0000-0000-000000000001,ai,chat,,1,3.25,0,0)'::usage.daily).*;
insert into usage.daily select ('(2024-05-01,,tts,,,1,30,0,0)'::usage.daily).*;
insert into usage.daily select ('(2024-05-05,,odd,,,1,0,0,0)'::usage.daily).*;
insert into usage.daily select ('(2024-06-05,00000000-0000-0000-0000-000000000007,cas,,,1,0,0,1)'::usage.daily).*;
insert into usage.daily select ('(2024-08-29,00000000-0000-0000-0000-000000000001,whisper,,,1,0.5,0,0)'::usage.daily).*;
insert into usage.daily_collection select ('(2024-01-28,00000000-0000-0000-0000-000000000002,ai,1,1.25,1,0)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-02-28,00000000-0000-0000-0000-000000000003,ai,1,2.25,2,0)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-04-29,00000000-0000-0000-0000-000000000001,ai,1,3.25,0,0)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-05-01,,tts,1,30,0,0)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-05-05,,odd,1,0,0,0)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-06-05,00000000-0000-0000-0000-000000000007,cas,1,0,0,1)'::usage.daily_collection).*;
insert into usage.daily_collection select ('(2024-08-29,00000000-0000-0000-0000-000000000001,whisper,1,0.5,0,0)'::usage.daily_collection).*;
insert into usage.daily_total select ('(2024-01-28,ai,1,1.25,1,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-02-28,ai,1,2.25,2,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-04-29,ai,1,3.25,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-05-01,tts,1,30,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-05-05,odd,1,0,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-06-05,cas,1,0,0,1)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-08-29,whisper,1,0.5,0,0)'::usage.daily_total).*;
insert into usage.monthly select ('(2024-01-01,00000000-0000-0000-0000-000000000002,ai,chat,m1,1,1.25,1,0)'::usage.monthly).*;
insert into usage.monthly select ('(2024-02-01,00000000-0000-0000-0000-000000000003,ai,chat,m0,1,2.25,2,0)'::usage.monthly).*;
insert into usage.monthly select ('(2024-04-01,00000000-0000-0000-0000-000000000001,ai,chat,,1,3.25,0,0)'::usage.monthly).*;
insert into usage.monthly select ('(2024-05-01,,odd,,,1,0,0,0)'::usage.monthly).*;
insert into usage.monthly select ('(2024-05-01,,tts,,,1,30,0,0)'::usage.monthly).*;
insert into usage.monthly select ('(2024-06-01,00000000-0000-0000-0000-000000000007,cas,,,1,0,0,1)'::usage.monthly).*;
insert into usage.monthly select ('(2024-08-01,00000000-0000-0000-0000-000000000001,whisper,,,1,0.5,0,0)'::usage.monthly).*;
insert into usage.monthly_collection select ('(2024-01-01,00000000-0000-0000-0000-000000000002,ai,1,1.25,1,0)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-02-01,00000000-0000-0000-0000-000000000003,ai,1,2.25,2,0)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-04-01,00000000-0000-0000-0000-000000000001,ai,1,3.25,0,0)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-05-01,,odd,1,0,0,0)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-05-01,,tts,1,30,0,0)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-06-01,00000000-0000-0000-0000-000000000007,cas,1,0,0,1)'::usage.monthly_collection).*;
insert into usage.monthly_collection select ('(2024-08-01,00000000-0000-0000-0000-000000000001,whisper,1,0.5,0,0)'::usage.monthly_collection).*;
update usage.state set source_oid = 'public.resource_usage_log'::regclass, source = 'public.resource_usage_log', version = 1, frontier = '2024-09-01T06:00:00+00:00', time_zone = 'Europe/Oslo', attached_at = '2024-09-01T06:00:00+00:00', capture_mode = 'always', title_source = 'public.nodes';
update usage.state set fingerprint = usage.fingerprint();
select setval('usage.frontier_seq', (extract(epoch from timestamptz '2024-09-01 06:00+00') * 1000000)::bigint);
