-- Doubts that a snapshot cannot show ----------------------------------------------------------------------------------------

-- A frontier sequence that a restore left behind lets changes go unseen. Whoever notices turns trust off, and puts it right.
-- A reader whose snapshot is from before that has a state with trust on, and by then a sequence that looks right: only what
-- belongs to no snapshot can tell it.
create sequence usage.doubt_seq as bigint;
comment on sequence usage.doubt_seq is
'How often the frontier sequence was found behind the rollups. Moved before that is put right, so that a reader whose snapshot is older sees more than usage.state.doubts of its snapshot has.';
alter table usage.state add column doubts bigint not null default 0;
comment on column usage.state.doubts is 'What usage.doubt_seq was when trust was turned off for it. Less, in a snapshot: it does not know yet.';

-- Until deploy/roles.sql is run again: whoever moves the one moves the other.
do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end
          from pg_class c, aclexplode(c.relacl) a
         where c.oid = 'usage.frontier_seq'::regclass and a.privilege_type = 'UPDATE' and a.grantee <> c.relowner
    loop
        execute format('grant select, update on sequence usage.doubt_seq to %s', grantee);
    end loop;
end $$;

-- Row-level security ---------------------------------------------------------------------------------------------------------

-- A partition's own policies count where it is read by its name, and hide rows that a read through the source shows: so then
-- through the source, which has none that apply.
create or replace function usage.partition_rows(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
    select case when has_table_privilege(c.oid, 'SELECT') and not c.relrowsecurity then format('%I.%I', n.nspname, c.relname)
                else format('(select e.created_at from %s e where e.tableoid = %s::oid and (%s))',
                            s.source, c.oid, coalesce(pg_get_partition_constraintdef(c.oid), 'true')) end
      from usage.state s, pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where c.oid = relation
$$;

-- A policy is code of whoever owns the table, and would run with our rights: what is filtered is an error, for titles as for
-- events, and what is wrong is said by usage.problems().
alter function usage.fingerprint_doubt() set row_security = off;
alter function usage.title_of(uuid) set row_security = off;
alter function usage.by_collection(timestamptz, timestamptz, uuid) set row_security = off;
alter function usage.ai_drilldown(timestamptz, timestamptz, uuid) set row_security = off;
alter function usage.overview_rows(timestamptz, timestamptz, uuid) set row_security = off;

-- One line each of functions that are as they were.
do $$
declare
    patched record;
    text    text;
begin
    for patched in
        select *
          from (values
                   ('usage.doubt()', '
    return usage.fingerprint_doubt();', '
    -- Looked at afterwards: if the sequence above was put right, this one had been moved.
    if s.capture_mode is distinct from ''lookback'' and coalesce(pg_sequence_last_value(''usage.doubt_seq''), 0) <> s.doubts then
        return ''the frontier sequence was behind the rollups (a restore?): run aggregator refresh'';
    end if;
    return usage.fingerprint_doubt();'),
                   ('usage.tail_events(bigint)', 'exception when undefined_table or undefined_column then',
                    'exception when undefined_table or undefined_column or insufficient_privilege then'),
                   ('usage.hourly_gain(integer, integer)', 'exception when undefined_table or undefined_column then',
                    'exception when undefined_table or undefined_column or insufficient_privilege then'),
                   ('usage.problems(interval, interval, bigint, numeric, interval)', '
    if s.title_source is not null then
        select string_agg(', '
    for failed in
        select f.code, f.name
          from (values (''source'', s.source), (''titles'', s.title_source)) f (code, name)
         where row_security_active(to_regclass(f.name)::oid)
    loop
        return query values (
            failed.code, format(''row-level security would hide rows of %s from role %s, so reads fail'', failed.name, current_user),
            format(''ALTER ROLE %I BYPASSRLS, or ALTER TABLE %s DISABLE ROW LEVEL SECURITY'', current_user, failed.name));
    end loop;

    if s.title_source is not null then
        select string_agg(')) p (function, old, new)
    loop
        text := pg_get_functiondef(patched.function::regprocedure);
        if position(patched.old in text) = 0 then
            raise 'migration 0005 does not know this %', patched.function;
        end if;
        execute replace(text, patched.old, patched.new);
    end loop;
end $$;

-- What is attached ----------------------------------------------------------------------------------------------------------

-- Names of the host's tables are put into statements that the owner's sessions and functions run. Not by column privileges:
-- whoever resets the frontier locks the table, for which PostgreSQL wants the right to update all of it.
create function usage.keep_attached() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if not (select pg_has_role(c.relowner, 'USAGE') from pg_class c where c.oid = tg_relid) then
        raise insufficient_privilege using message = 'only the owner of usage.state may change what is attached, and how';
    end if;
    return new;
end $$;
comment on function usage.keep_attached() is
'Trigger on usage.state: who may only refresh changes neither the names of the host''s tables nor how they are captured.';
create trigger keep_attached before update on usage.state
    for each row when ((old.source, old.title_source, old.time_zone, old.capture_mode, old.lookback_days, old.distributed)
                       is distinct from (new.source, new.title_source, new.time_zone, new.capture_mode, new.lookback_days, new.distributed))
    execute function usage.keep_attached();

select usage.restore_grants();
