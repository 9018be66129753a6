-- What release 0013 left in a database that was attached and refreshed in the zone Europe/Oslo, besides its migration:
-- functions, triggers, events, rollups and state, dumped from it. Frozen, as the release is.
CREATE OR REPLACE FUNCTION usage.capture()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$-- The source is known by its name, so a restored database needs no new function; PUBLIC may execute this (or the
-- host's role could not create a partition), so a trigger on any other table does nothing, nor does a further one on this.
declare
    frontier timestamptz;
    seal     timestamptz;
begin
    if tg_name not in ('usage_insert', 'usage_update', 'usage_delete')
       or not coalesce(tg_relid = pg_catalog.to_regclass('public.resource_usage_log')::oid
                       or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass('public.resource_usage_log')::oid, false) then
        return null;
    end if;
    -- What another server noted of a change comes along with it where late_change itself is subscribed to: not once more.
    if pg_catalog.current_setting('session_replication_role') = 'replica' then
        if exists (select from pg_catalog.pg_subscription_rel r where r.srrelid = 'usage.late_change'::pg_catalog.regclass) then
            return null;
        end if;
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
                or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass('public.resource_usage_log')::oid, false)
       and not (pg_catalog.current_setting('session_replication_role') = 'replica'
                and exists (select from pg_catalog.pg_subscription_rel r where r.srrelid = 'usage.truncate_marker'::pg_catalog.regclass)) then
        -- One marker is as good as two: where rows were replicated and the numbers were not, they may meet.
        insert into usage.truncate_marker (truncated) values (tg_relid::regclass::text) on conflict do nothing;
    end if;
    return null;
end$function$;
CREATE OR REPLACE FUNCTION usage.collection()
 RETURNS TABLE(id uuid, title text)
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$select n.id::pg_catalog.uuid, n.title::pg_catalog.text from public.nodes n$function$;
CREATE OR REPLACE FUNCTION usage.event()
 RETURNS TABLE(created_at timestamp with time zone, collection_id uuid, resource_type text, detail jsonb)
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text, e.detail::pg_catalog.jsonb from public.resource_usage_log e$function$;
CREATE OR REPLACE FUNCTION usage.event_between(since timestamp with time zone, until timestamp with time zone)
 RETURNS TABLE(created_at timestamp with time zone, collection_id uuid, resource_type text, detail jsonb)
 LANGUAGE sql
 STABLE
AS $function$select e.created_at, e.collection_id, e.resource_type, e.detail from usage.event() e where e.created_at operator(pg_catalog.>=) $1 and ($2 is null or e.created_at operator(pg_catalog.<) $2)$function$;
CREATE TRIGGER usage_delete AFTER DELETE ON public.resource_usage_log FOR EACH ROW WHEN ((((old.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / '1000000'::double precision))) IS NOT FALSE) AND ((old.created_at >= to_timestamp(((pg_sequence_last_value('usage.seal_seq'::regclass))::double precision / '1000000'::double precision))) IS NOT FALSE))) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_delete;
CREATE TRIGGER usage_insert AFTER INSERT ON public.resource_usage_log FOR EACH ROW WHEN (((new.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / '1000000'::double precision))) IS NOT FALSE)) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_insert;
CREATE TRIGGER usage_truncate AFTER TRUNCATE ON public.resource_usage_log FOR EACH STATEMENT EXECUTE FUNCTION usage.capture_truncate();
alter table public.resource_usage_log enable always trigger usage_truncate;
CREATE TRIGGER usage_update AFTER UPDATE ON public.resource_usage_log FOR EACH ROW WHEN (((((old.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / '1000000'::double precision))) IS NOT FALSE) OR ((new.created_at < to_timestamp(((pg_sequence_last_value('usage.frontier_seq'::regclass))::double precision / '1000000'::double precision))) IS NOT FALSE)) AND ((old.created_at IS DISTINCT FROM new.created_at) OR (old.collection_id IS DISTINCT FROM new.collection_id) OR (old.resource_type IS DISTINCT FROM new.resource_type) OR ((old.detail)::text IS DISTINCT FROM (new.detail)::text)))) EXECUTE FUNCTION usage.capture();
alter table public.resource_usage_log enable always trigger usage_update;
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at) values
    ('00000000-0000-0000-0000-000000000002', 'ai', '{"tokens_in": 1.25, "tokens_out": "1", "job_type": "chat", "model_level": "m1"}', '2024-01-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000003', 'ai', '{"tokens_in": 2.25, "tokens_out": "2", "job_type": "chat", "model_level": "m0"}', '2024-02-28 23:30+01'),
    ('00000000-0000-0000-0000-000000000001', 'ai', '{"tokens_in": 3.25, "job_type": "chat"}', '2024-04-28 23:30+01'),
    (null, 'tts', '{"characters": 30}', '2024-05-01 00:00+00'),
    (null, 'odd', '{}', '2024-05-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000007', 'cas', '{"size_bytes": "many"}', '2024-06-05 12:00+02'),
    ('00000000-0000-0000-0000-000000000001', 'whisper', '{"duration_seconds": 0.5}', '2024-08-29 00:30+02');
insert into usage.key select ('(1,00000000-0000-0000-0000-000000000003,ai,,,1)'::usage.key).*;
insert into usage.key select ('(2,00000000-0000-0000-0000-000000000002,ai,,,2)'::usage.key).*;
insert into usage.key select ('(3,00000000-0000-0000-0000-000000000001,whisper,,,3)'::usage.key).*;
insert into usage.key select ('(4,,odd,,,4)'::usage.key).*;
insert into usage.key select ('(5,,tts,,,5)'::usage.key).*;
insert into usage.key select ('(6,00000000-0000-0000-0000-000000000007,cas,,,6)'::usage.key).*;
insert into usage.key select ('(7,00000000-0000-0000-0000-000000000001,ai,,,7)'::usage.key).*;
insert into usage.key select ('(8,00000000-0000-0000-0000-000000000003,ai,chat,m0,1)'::usage.key).*;
insert into usage.key select ('(9,00000000-0000-0000-0000-000000000001,ai,chat,,7)'::usage.key).*;
insert into usage.key select ('(10,00000000-0000-0000-0000-000000000002,ai,chat,m1,2)'::usage.key).*;
insert into usage.daily_collection_fact select ('(2024-01-28,2,1,1.25,1,0)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-02-28,1,1,2.25,2,0)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-04-29,7,1,3.25,0,0)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-05-01,5,1,30,0,0)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-05-05,4,1,0,0,0)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-06-05,6,1,0,0,1)'::usage.daily_collection_fact).*;
insert into usage.daily_collection_fact select ('(2024-08-29,3,1,0.5,0,0)'::usage.daily_collection_fact).*;
insert into usage.daily_fact select ('(2024-01-28,10,1,1.25,1,0)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-02-28,8,1,2.25,2,0)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-04-29,9,1,3.25,0,0)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-05-01,5,1,30,0,0)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-05-05,4,1,0,0,0)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-06-05,6,1,0,0,1)'::usage.daily_fact).*;
insert into usage.daily_fact select ('(2024-08-29,3,1,0.5,0,0)'::usage.daily_fact).*;
insert into usage.daily_total select ('(2024-04-29,ai,1,3.25,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-02-28,ai,1,2.25,2,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-05-01,tts,1,30,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-06-05,cas,1,0,0,1)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-05-05,odd,1,0,0,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-01-28,ai,1,1.25,1,0)'::usage.daily_total).*;
insert into usage.daily_total select ('(2024-08-29,whisper,1,0.5,0,0)'::usage.daily_total).*;
insert into usage.hourly_collection_fact select ('("2024-01-28 22:00:00+00",2,1,1.25,1,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-02-28 22:00:00+00",1,1,2.25,2,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-04-28 22:00:00+00",7,1,3.25,0,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-05-01 00:00:00+00",5,1,30,0,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-05-05 10:00:00+00",4,1,0,0,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-06-05 10:00:00+00",6,1,0,0,1)'::usage.hourly_collection_fact).*;
insert into usage.hourly_collection_fact select ('("2024-08-28 22:00:00+00",3,1,0.5,0,0)'::usage.hourly_collection_fact).*;
insert into usage.hourly_fact select ('("2024-01-28 22:00:00+00",10,1,1.25,1,0)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-02-28 22:00:00+00",8,1,2.25,2,0)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-04-28 22:00:00+00",9,1,3.25,0,0)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-05-01 00:00:00+00",5,1,30,0,0)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-05-05 10:00:00+00",4,1,0,0,0)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-06-05 10:00:00+00",6,1,0,0,1)'::usage.hourly_fact).*;
insert into usage.hourly_fact select ('("2024-08-28 22:00:00+00",3,1,0.5,0,0)'::usage.hourly_fact).*;
insert into usage.monthly_collection_fact select ('(2024-01-01,2,1,1.25,1,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-02-01,1,1,2.25,2,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-04-01,7,1,3.25,0,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-05-01,4,1,0,0,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-05-01,5,1,30,0,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-06-01,6,1,0,0,1)'::usage.monthly_collection_fact).*;
insert into usage.monthly_collection_fact select ('(2024-08-01,3,1,0.5,0,0)'::usage.monthly_collection_fact).*;
insert into usage.monthly_fact select ('(2024-01-01,10,1,1.25,1,0)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-02-01,8,1,2.25,2,0)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-04-01,9,1,3.25,0,0)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-05-01,4,1,0,0,0)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-05-01,5,1,30,0,0)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-06-01,6,1,0,0,1)'::usage.monthly_fact).*;
insert into usage.monthly_fact select ('(2024-08-01,3,1,0.5,0,0)'::usage.monthly_fact).*;
insert into usage.rolled_day select ('(2024-04-29,"2024-04-28 22:00:00+00","2024-04-29 22:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-06-05,"2024-06-04 22:00:00+00","2024-06-05 22:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-08-29,"2024-08-28 22:00:00+00","2024-08-29 22:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-05-01,"2024-04-30 22:00:00+00","2024-05-01 22:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-05-05,"2024-05-04 22:00:00+00","2024-05-05 22:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-01-28,"2024-01-27 23:00:00+00","2024-01-28 23:00:00+00")'::usage.rolled_day).*;
insert into usage.rolled_day select ('(2024-02-28,"2024-02-27 23:00:00+00","2024-02-28 23:00:00+00")'::usage.rolled_day).*;
update usage.state set source_oid = 'public.resource_usage_log'::regclass, source = 'public.resource_usage_log', version = 1, frontier = '2024-09-01T06:00:00+00:00', time_zone = 'Europe/Oslo', attached_at = '2024-09-01T06:00:00+00:00', rolled_days = 1, capture_mode = 'always', hourly_since = '-infinity', title_source = 'public.nodes';
update usage.state set fingerprint = usage.fingerprint(), storage = usage.storage();
select setval('usage.frontier_seq', (extract(epoch from timestamptz '2024-09-01 06:00+00') * 1000000)::bigint);
