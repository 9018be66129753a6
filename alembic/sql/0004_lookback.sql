-- Lookback: sources that can have no triggers (views, foreign tables, distributed tables). No change is captured; each
-- refresh repairs the last days. Answers are as of the last refresh below the frontier, and say so.

alter table usage.state add column lookback_days integer;
comment on column usage.state.lookback_days is
'capture_mode lookback: each refresh repairs this many local days before the frontier of the one before; else null.';
alter table usage.state drop constraint state_capture_mode;
alter table usage.state add constraint state_capture_mode check (capture_mode in ('always', 'origin', 'lookback'));
alter table usage.state add constraint state_lookback
    check (coalesce(capture_mode = 'lookback', false) = (lookback_days is not null) and lookback_days > 0);
comment on column usage.state.capture_mode is
'always: triggers are ENABLE ALWAYS; origin: late_change is itself subscribed to; lookback: no triggers, each refresh repairs the last days.';

create or replace function usage.is_captured(trigger_states text, capture_mode text) returns boolean
language sql immutable parallel safe
return case capture_mode when 'lookback' then true
                         when 'origin' then trigger_states like 'usage_delete O %usage_insert O %usage_update O %'
                         else trigger_states like 'usage_delete A %usage_insert A %usage_update A %' end;

-- Events of a range ----------------------------------------------------------------------------------------------------

-- What the planner inlines, so that a range costs what it did. For a table that Citus distributes attach puts others in their
-- place, which hand the range to the workers, since Citus cannot plan inlined ones.
create function usage.event_between(since timestamptz, until timestamptz)
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language sql stable as $$select e.created_at, e.collection_id, e.resource_type, e.detail from usage.event() e where e.created_at >= $1 and ($2 is null or e.created_at < $2)$$;

create function usage.next_event(since timestamptz, until timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$declare
    found timestamptz;
begin
    -- as a value, so that the planner knows the range
    execute 'select min(e.created_at) from usage.event_between($1, $2) e' into found using since, until;
    return found;
end$$;

create function usage.nth_event(since timestamptz, until timestamptz, n bigint) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$declare
    found timestamptz;
begin
    execute 'select e.created_at from usage.event_between($1, $2) e order by e.created_at offset $3 limit 1' into found using since, until, n;
    return found;
end$$;

create function usage.distributed_sums(since timestamptz, until timestamptz)
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$begin
    raise object_not_in_prerequisite_state using message = 'the source is not a table that Citus distributes';
end$$;
comment on function usage.event_between(timestamptz, timestamptz) is
'The events of [since, until), until null: open; since null: none.';
comment on function usage.next_event(timestamptz, timestamptz) is 'The instant of the first event in [since, until), or null.';
comment on function usage.nth_event(timestamptz, timestamptz, bigint) is
'Where a step of about N events of [since, until) ends: the instant of event N + 1, of a distributed table the first instant of a day; null: there are no more than N.';
comment on function usage.distributed_sums(timestamptz, timestamptz) is
'Of a table that Citus distributes: what the events of [since, until) add up to by day and key, worked out on the workers.';

alter table usage.state add column distributed boolean not null default false;
comment on column usage.state.distributed is 'Whether the source is a table that Citus distributes: folds add up on its workers.';

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
          from usage.event_between($1, null) e
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
    execute 'select count(*) from (select from usage.event_between($1, null) limit $2) t'
       into found using (select s.frontier from usage.state s), at_most;
    return found;
exception when undefined_table or undefined_column then  -- renamed or dropped by the host: usage.problems() says so
    return null;
end $$;
