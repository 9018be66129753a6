-- Back: triggers only.
do $$
declare
    moved text;
begin
    if exists (select from usage.state s where s.capture_mode = 'lookback') then
        raise object_not_in_prerequisite_state using
            message = 'the source is attached by lookback, which the earlier revision does not know: run aggregator detach first';
    end if;
    foreach moved in array array['usage.captured_fingerprint_doubt()', 'usage.captured_window_parts(timestamptz, timestamptz)',
                                 'usage.captured_problems(interval, interval, bigint, numeric, interval)'] loop
        execute replace(pg_catalog.pg_get_functiondef(moved::pg_catalog.regprocedure), 'FUNCTION usage.captured_', 'FUNCTION usage.');
        execute pg_catalog.format('drop function %s', moved::pg_catalog.regprocedure);
    end loop;
end $$;
drop function usage.lookback_reason(date);

create or replace function usage.is_captured(trigger_states text, capture_mode text) returns boolean
language sql immutable parallel safe
return case capture_mode when 'origin' then trigger_states like 'usage_delete O %usage_insert O %usage_update O %'
                         else trigger_states like 'usage_delete A %usage_insert A %usage_update A %' end;

create or replace function usage.range_sql(since timestamptz, until timestamptz) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
    return format('usage.event() e where e.created_at >= %L::timestamptz', since)
        || case when until is null then '' else format(' and e.created_at < %L::timestamptz', until) end;
end $$;

create or replace function usage.pending_event()
returns table (sign integer, created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    top timestamptz := usage.effective_frontier();
begin
    return query execute $query$
        select l.sign::integer, l.created_at, l.collection_id, l.resource_type, l.detail
          from usage.late_change l where l.created_at < $1
        union all
        select 1, e.created_at, e.collection_id, e.resource_type, e.detail
          from usage.event() e where e.created_at >= $1
    $query$ using top;
end $$;

create or replace function usage.tail_events(at_most bigint) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
declare
    found bigint;
begin
    if (select s.source is null from usage.state s) then
        return null;
    end if;
    execute 'select count(*) from (select from usage.event() e where e.created_at >= $1 limit $2) t'
       into found using (select s.frontier from usage.state s), at_most;
    return found;
exception when undefined_table or undefined_column then  -- renamed or dropped by the host: usage.problems() says so
    return null;
end $$;

drop function usage.event_between(timestamptz, timestamptz);
drop function usage.next_event(timestamptz, timestamptz);
drop function usage.nth_event(timestamptz, timestamptz, bigint);
drop function usage.distributed_sums(timestamptz, timestamptz);
alter table usage.state drop column distributed;

alter table usage.state drop constraint state_lookback;
alter table usage.state drop constraint state_capture_mode;
alter table usage.state add constraint state_capture_mode check (capture_mode in ('always', 'origin'));
alter table usage.state drop column lookback_days;
comment on column usage.state.capture_mode is 'always: triggers are ENABLE ALWAYS; origin: late_change is itself subscribed to.';
