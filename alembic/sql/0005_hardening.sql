-- Doubts that a snapshot cannot show ----------------------------------------------------------------------------------------

-- A frontier sequence that a restore left behind lets changes go unseen. Whoever notices turns trust off, and puts it right.
-- A reader whose snapshot is from before that has a state with trust on, and by then a sequence that looks right: only what
-- belongs to no snapshot can tell it.
create sequence usage.doubt_seq as bigint;
comment on sequence usage.doubt_seq is
'How often the frontier sequence was found behind the rollups. Moved before that is put right, so that a reader whose snapshot is older sees more than usage.state.doubts of its snapshot has.';
alter table usage.state add column doubts bigint not null default 0;
comment on column usage.state.doubts is 'What usage.doubt_seq was when trust was turned off for it. Less, in a snapshot: it does not know yet.';

-- Time zone data that changes -------------------------------------------------------------------------------------------------

-- New rules for the past move events from one day to the next, and other servers (standbys, copies) may have other rules.
-- So it is kept when the days began that the rollups are made of.
create table usage.rolled_day (
    day       date        primary key,
    starts_at timestamptz not null,
    ends_at   timestamptz not null
);
comment on table usage.rolled_day is
'When the days that are rolled up began and ended, by the time zone data of then. None for UTC, which nobody changes.';
comment on column usage.rolled_day.day is 'A local day with rollup rows.';
comment on column usage.rolled_day.starts_at is 'Its first instant.';
comment on column usage.rolled_day.ends_at is 'The first instant of the next day.';
alter table usage.state add column rolled_days bigint not null default 0;
comment on column usage.state.rolled_days is 'How often usage.rolled_day was added to: a session compares it with its own time zone data once each time.';
insert into usage.rolled_day
select d.day, usage.day_start(d.day, s.time_zone), usage.day_start(usage.next_day(d.day), s.time_zone)
  from usage.state s, (select distinct t.day from usage.daily_total t where isfinite(t.day)) d
 where s.time_zone <> 'UTC';

create function usage.moved_day(sealed boolean) returns date
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select min(r.day)
      from usage.state s, usage.rolled_day r
     where (r.starts_at < s.sealed_until) = $1
       and (usage.day_start(r.day, s.time_zone) <> r.starts_at
            or usage.day_start(usage.next_day(r.day), s.time_zone) <> r.ends_at)
$$;
comment on function usage.moved_day(boolean) is
'The first day, sealed or not, that by this session''s time zone data does not begin and end when its events were added up; null: none.';

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
    s usage.state;', '
    s     usage.state;
    known text := current_setting(''usage.rolled_days'', true);'),
                   ('usage.doubt()', '
    select * into strict s from usage.state;', '
    select * into strict s from usage.state;
    -- A session keeps the time zone data that it has once read, so it is asked once, and when other days are rolled up.
    if s.time_zone <> ''UTC'' and split_part(known, '' '', 1) is distinct from s.rolled_days::text then
        known := concat_ws('' '', s.rolled_days, to_char(usage.moved_day(true), ''"sealed" YYYY-MM-DD''), to_char(usage.moved_day(false), ''"moved" YYYY-MM-DD''));
        perform set_config(''usage.rolled_days'', known, false);
    end if;'),
                   ('usage.doubt()', '
    return usage.fingerprint_doubt();', '
    -- Looked at afterwards: if the sequence above was put right, this one had been moved.
    if s.capture_mode is distinct from ''lookback'' and coalesce(pg_sequence_last_value(''usage.doubt_seq''), 0) <> s.doubts then
        return ''the frontier sequence was behind the rollups (a restore?): run aggregator refresh'';
    end if;
    if s.time_zone <> ''UTC'' and known like ''% moved %'' then
        return format(''the time zone data has changed: %s no longer begins or ends when it did: run aggregator refresh'', split_part(known, '' moved '', 2));
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

-- A seal is a day's first instant, by the data of then: of that day, even if it lies an hour beside its start by now.
create function usage.seal_day(seal timestamptz, zone text) returns date
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$ select usage.local_day(seal + interval '3 hours', zone) $$;
comment on function usage.seal_day(timestamptz, text) is
'The first day that is not sealed: the one that the seal is the first instant of, or was, by other time zone data.';

create or replace function usage.rolled_until() returns date
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select case when usage.doubt() is null then 'infinity'::date
                else usage.seal_day(s.sealed_until, s.time_zone) end
      from usage.state s
$$;

do $$
declare
    text constant text := pg_get_functiondef('usage.cut_window(timestamptz, timestamptz)'::regprocedure);
    old  constant text := E'    last_day := usage.local_day(top, s.time_zone);\n';
begin
    if position(old in text) = 0 then
        raise 'migration 0005 does not know this usage.cut_window';
    end if;
    execute replace(text, old, old || E'    if doubt is not null then\n        last_day := usage.seal_day(top, s.time_zone);\n'
                                      '        whole_below := last_day;\n    end if;\n');
end $$;

-- What is sealed cannot be added up anew: its answers say so.
create or replace function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    p      usage.window_parts := usage.cut_window(since, until);
    reason text := usage.lookback_reason(p.day_from);
begin
    if reason is not null then
        p.exact := false;
        p.reasons := p.reasons || reason;
    end if;
    if current_setting('usage.rolled_days', true) like '% sealed %' then  -- as usage.doubt() has found
        reason := (select format('the time zone data has changed: %s, which is sealed, counts as it began and ended before', min(r.day))
                     from usage.state s, usage.rolled_day r
                    where r.starts_at < s.sealed_until and r.ends_at > since and (until is null or r.starts_at < until)
                      and (usage.day_start(r.day, s.time_zone) <> r.starts_at
                           or usage.day_start(usage.next_day(r.day), s.time_zone) <> r.ends_at)
                   having count(*) > 0);
        if reason is not null then
            p.exact := false;
            p.reasons := p.reasons || reason;
        end if;
    end if;
    return p;
end $$;

-- Whoever folds notes days, and asks for them.
do $$
declare
    grantee text;
begin
    for grantee in
        select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end
          from pg_class c, aclexplode(c.relacl) a
         where c.oid = 'usage.daily_fact'::regclass and a.privilege_type = 'UPDATE' and a.grantee <> c.relowner
    loop
        execute format('grant select, insert, update, delete on usage.rolled_day to %s', grantee);
    end loop;
    for grantee in
        select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end
          from pg_proc p, aclexplode(p.proacl) a
         where p.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, p.proowner)
    loop
        execute format('grant execute on function usage.moved_day(boolean), usage.seal_day(timestamptz, text) to %s', grantee);
    end loop;
end $$;

select usage.restore_grants();
