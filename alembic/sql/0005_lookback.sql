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

-- Three functions get a new outside. What they did goes on under another name; theirs stays bound where it is used.
do $$
declare
    moved text;
begin
    foreach moved in array array['usage.fingerprint_doubt()', 'usage.window_parts(timestamptz, timestamptz)',
                                 'usage.problems(interval, interval, bigint, numeric, interval)'] loop
        execute replace(pg_catalog.pg_get_functiondef(moved::pg_catalog.regprocedure), 'FUNCTION usage.', 'FUNCTION usage.captured_');
    end loop;
end $$;
comment on function usage.captured_fingerprint_doubt() is 'usage.fingerprint_doubt() of a source with triggers.';
comment on function usage.captured_window_parts(timestamptz, timestamptz) is 'usage.window_parts() of a source with triggers.';
comment on function usage.captured_problems(interval, interval, bigint, numeric, interval) is 'usage.problems() of a source with triggers.';

-- Of a source without triggers nothing is known but whether it is there, and the same.
create or replace function usage.fingerprint_doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s usage.state;
begin
    select * into strict s from usage.state;
    if s.capture_mode is distinct from 'lookback' then
        return usage.captured_fingerprint_doubt();
    elsif to_regclass(s.source) is null then
        return format('the source %s is gone: restore it, or run aggregator detach', s.source);
    elsif to_regclass(s.source)::oid <> s.source_oid then
        return format('another relation bears the name %s: run aggregator attach, then verify --repair', s.source);
    end if;
    return null;
end $$;

create function usage.lookback_reason(first_day date) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select format('capture is lookback: a late change of the last %s appears at the next refresh, an older one at aggregator verify --repair',
                  case s.lookback_days when 1 then 'day' else s.lookback_days || ' days' end)
      from usage.state s
     where s.capture_mode = 'lookback' and first_day is not null
$$;
comment on function usage.lookback_reason(date) is
'Why an answer that takes days from the rollups, from this one on (null: none), may miss late changes; null if it cannot.';

create or replace function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    p      usage.window_parts := usage.captured_window_parts(since, until);
    reason text := usage.lookback_reason(p.day_from);
begin
    if reason is not null then
        p.exact := false;
        p.reasons := p.reasons || reason;
    end if;
    return p;
end $$;

create or replace function usage.problems(
    max_lag interval, max_verification_age interval, max_pending_changes bigint, max_rejected_share numeric, max_frontier_ahead interval)
returns table (code text, problem text, remedy text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD' set timezone = 'UTC'
as $$
begin
    return query
        select p.code, p.problem, p.remedy
          from usage.captured_problems(max_lag, max_verification_age, max_pending_changes, max_rejected_share, max_frontier_ahead) p
         -- a view or foreign table has no index of its own
         where not (p.code = 'source' and p.remedy like 'CREATE INDEX %'
                    and exists (select from usage.state s join pg_class c on c.oid = to_regclass(s.source)
                                 where s.capture_mode = 'lookback' and c.relkind in ('v', 'f')));
end $$;

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

create or replace function usage.range_sql(since timestamptz, until timestamptz) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
    if (select s.distributed from usage.state s) then
        return format('usage.event_between(%L::timestamptz, %L::timestamptz) e', since, until);
    end if;
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

-- Until deploy/roles.sql is run again: whoever could read events still can.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc new, pg_proc old, aclexplode(old.proacl) a
         where old.oid = 'usage.event()'::regprocedure and a.grantee not in (0, old.proowner)
           and new.pronamespace = 'usage'::regnamespace
           and new.proname in ('event_between', 'next_event', 'nth_event', 'distributed_sums')
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
