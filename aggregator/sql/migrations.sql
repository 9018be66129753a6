-- Run-time SQL of migrate, around what Alembic runs.

-- is_empty --
-- Whether nothing of anybody is in schema usage: what is there then, an earlier version left when it failed.
select not exists (select from pg_class where relnamespace = 'usage'::regnamespace and relname not like 'alembic_version%')
   and not exists (select from pg_proc where pronamespace = 'usage'::regnamespace)
   and not exists (select from pg_type where typnamespace = 'usage'::regnamespace and typname not like '%alembic_version')

-- mutex --
-- One migrate at a time. For this transaction only.
select pg_advisory_xact_lock(7305806122046875238)

-- create_schema --
-- IF NOT EXISTS asks for the privilege to create one even if it is there.
do $$ begin
    if not exists (select from pg_namespace where nspname = 'usage') then
        create schema usage;
    end if;
end $$

-- lock_tables --
-- What readers lock first, before all else; the rest is to be had at once or not at all. So nobody waits behind a
-- migration that waits for somebody else, and a reader is never part of a deadlock with it.
do $$
declare
    name regclass;
begin
    if to_regclass('usage.state') is not null then
        lock table usage.state in access exclusive mode;
        for name in select c.oid from pg_class c where c.relnamespace = 'usage'::regnamespace and c.relkind = 'r' order by c.oid
        loop
            execute format('lock table %s in access exclusive mode nowait', name);
        end loop;
    end if;
end $$

-- drop_schema --
drop table usage.alembic_version;
drop schema usage
