-- Doubts that a snapshot cannot show ----------------------------------------------------------------------------------------

-- A frontier sequence that a restore left behind lets changes go unseen. Whoever notices turns trust off, and puts it right.
-- A reader whose snapshot is from before that has a state with trust on, and by then a sequence that looks right: only what
-- belongs to no snapshot can tell it.
create sequence usage.doubt_seq as bigint;
comment on sequence usage.doubt_seq is
'How often the frontier sequence was found behind the rollups. Moved before that is put right, so that a reader whose snapshot is older sees more than usage.state.doubts of its snapshot has.';
alter table usage.state add column doubts bigint not null default 0;
comment on column usage.state.doubts is 'What usage.doubt_seq was when trust was turned off for it. Less, in a snapshot: it does not know yet.';

create or replace function usage.doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s usage.state;
begin
    select * into strict s from usage.state;
    if not s.trusted then
        return s.distrust_reason;
    end if;
    if exists (select from usage.truncate_marker) then
        return 'the source was truncated: run aggregator refresh';
    end if;
    -- Never below in any snapshot: the sequence moves first, and only upwards.
    if isfinite(s.frontier)
       and coalesce(pg_sequence_last_value('usage.frontier_seq') < extract(epoch from s.frontier) * 1000000, true) then
        return 'the frontier sequence is behind the rollups (a restore?): run aggregator refresh';
    end if;
    -- Looked at afterwards: if the sequence above was put right, this one had been moved.
    if s.capture_mode is distinct from 'lookback' and coalesce(pg_sequence_last_value('usage.doubt_seq'), 0) <> s.doubts then
        return 'the frontier sequence was behind the rollups (a restore?): run aggregator refresh';
    end if;
    return usage.fingerprint_doubt();
end $$;

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
