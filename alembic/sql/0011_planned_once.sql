-- What every read asks first, planned once a session on all versions, and not asked where one look tells.

-- Functions in SQL that are not inlined are planned in each transaction before PostgreSQL 18, and begun anew in each call on
-- all. Those in PL/pgSQL keep their plans. What they say is as before.

-- The sum of an instant and an interval is STABLE, so this one was never inlined.
create or replace function usage.day_start(day date, zone text) returns timestamptz
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when day = '-infinity' then '-infinity'::timestamptz
        when day = 'infinity' then ('10000-01-01'::timestamp at time zone zone)
        else (day::timestamp at time zone zone) - greatest(
            interval '0',
            (((day::timestamp at time zone zone) - interval '1 microsecond') at time zone zone)
                + interval '1 microsecond' - day::timestamp)
    end;
end $$;

create or replace function usage.lookback_reason(first_day date) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format('capture is lookback: a late change of the last %s appears at the next refresh, an older one at aggregator verify --repair',
                      case s.lookback_days when 1 then 'day' else s.lookback_days || ' days' end)
          from usage.state s
         where s.capture_mode = 'lookback' and first_day is not null);
end $$;

create or replace function usage.keys_of(collection uuid, by_key boolean) returns integer[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if collection is not null then
        return array(select distinct case when by_key then k.id else k.collection_key end from usage.key k where k.collection_id = collection);
    end if;
    return null;
end $$;

-- Whether capture is whole --------------------------------------------------------------------------------------------------

-- An ordinary table, as most sources are, has no partitions to be looked for. Where there are hundreds, a plan made for so many
-- would go through all triggers of the database.
create or replace function usage.fingerprint() returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
    root    oid;
    enabled "char";  -- what tgenabled is, of a trigger that fires as it should
    relids  oid[];
    leaves  boolean[];
begin
    select to_regclass(s.source)::oid, case s.capture_mode when 'origin' then 'O' else 'A' end into root, enabled from usage.state s;
    if (select c.relkind = 'r' from pg_class c where c.oid = root) then
        relids := array[root];
        leaves := array[true];
    else
        select array_agg(t.relid), array_agg(t.isleaf) into relids, leaves from usage.source_tree() t;
    end if;
    return (
        select jsonb_object_agg(tree.relid::text, coalesce(trigger.states, '')
                   || case when tree.isleaf and not coalesce(trigger.truncate, false)
                           then ' file ' || coalesce(pg_relation_filenode(tree.relid)::text, '-') else '' end)
          from unnest(relids, leaves) tree (relid, isleaf)
          left join (
               select t.tgrelid,
                      string_agg(t.tgname || ' ' || t.tgenabled::text || ' ' || t.xmin::text, ', ' order by t.tgname) as states,
                      bool_or(t.tgname = 'usage_truncate' and t.tgenabled = enabled) as truncate
                 from pg_trigger t
                where t.tgrelid = any (relids)
                  and t.tgname in ('usage_insert', 'usage_update', 'usage_delete', 'usage_truncate')
                group by t.tgrelid) trigger on trigger.tgrelid = tree.relid);
end $$;

-- Two statements that nearly always find nothing are run only where there may be something.
do $do$
declare
    patched record;
    text    text := pg_get_functiondef('usage.fingerprint_doubt()'::regprocedure);
begin
    for patched in
        select *
          from (values ($$
    by_lookback boolean;$$, $$
    by_lookback boolean;
    look     record;$$),
                       ($$
    with recursive tree as ($$, $$
    select c.relkind = 'p' as partitioned, c.relhassubclass or c.relkind = 'f' or c.relpersistence <> 'p' as is_odd
      into look
      from pg_class c
     where c.oid = s.source_oid;
    if look.is_odd then
    with recursive tree as ($$),
                       ($$
    -- After a TRUNCATE all is folded anew in any case.$$, $$
    end if;
    -- After a TRUNCATE all is folded anew in any case.$$),
                       ($$
    now_is := usage.fingerprint();$$, $$
    now_is := usage.fingerprint();
    if now_is = s.fingerprint and not look.partitioned then
        return null;
    end if;$$),
                       ($$
    if s.capture_mode = 'always' and (select relkind from pg_class c where c.oid = s.source_oid) = 'p'$$, $$
    if s.capture_mode = 'always' and look.partitioned$$)) p (old, new)
    loop
        if position(patched.old in text) = 0 then
            raise 'migration 0011 does not know this usage.fingerprint_doubt';
        end if;
        text := replace(text, patched.old, patched.new);
    end loop;
    execute text;
end $do$;

-- Sections ------------------------------------------------------------------------------------------------------------------

-- The title of one collection is looked up, not joined.
create or replace function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
#variable_conflict use_column
begin
    if by_collection.collection is not null then
        return query
        select r.collection_id, c.title, r.resource_type, r.event_count,
               r.total_value::float8 as total_value, r.secondary_value::float8
          from usage.collection_rows(by_collection.since, by_collection.until, by_collection.collection, false) r
          left join usage.collection() c on c.id = by_collection.collection
         order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last;
    else
        return query
        select r.collection_id, c.title, r.resource_type, r.event_count,
               r.total_value::float8 as total_value, r.secondary_value::float8
          from usage.window_rows(by_collection.since, by_collection.until, null, true, false, false, false) r
          left join usage.collection() c on c.id = r.collection_id
         where r.section = 'by_collection'
         order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last;
    end if;
end $$;

create or replace function usage.ai_drilldown(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, job_type text, model_level text,
               tokens_in numeric, tokens_out numeric, event_count bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
#variable_conflict use_column
begin
    if ai_drilldown.collection is not null then
        return query
        select r.collection_id, c.title, r.job_type, r.model_level,
               round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
          from usage.collection_rows(ai_drilldown.since, ai_drilldown.until, ai_drilldown.collection, true) r
          left join usage.collection() c on c.id = ai_drilldown.collection
         order by tokens_in desc, r.collection_id nulls last,
                  r.job_type collate "C" nulls last, r.model_level collate "C" nulls last;
    else
        return query
        select r.collection_id, c.title, r.job_type, r.model_level,
               round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
          from usage.window_rows(ai_drilldown.since, ai_drilldown.until, null, false, true, false, false) r
          left join usage.collection() c on c.id = r.collection_id
         where r.section = 'ai_drilldown'
         order by tokens_in desc, r.collection_id nulls last,
                  r.job_type collate "C" nulls last, r.model_level collate "C" nulls last;
    end if;
end $$;
