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

-- others --
-- While nothing of ours is in schema usage yet: whose it is, if not ours nor a role's that we act for (a superuser acts for
-- all, which proves nothing), and who else may create in it.
select current_user,
       (select pg_get_userbyid(n.nspowner) from pg_roles r
         where r.rolname = current_user and r.oid <> n.nspowner and (r.rolsuper or not pg_has_role(n.nspowner, 'USAGE'))),
       (select string_agg(case a.grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(a.grantee)) end, ', ' order by a.grantee)
          from aclexplode(n.nspacl) a
         where a.privilege_type = 'CREATE' and a.grantee <> n.nspowner)
  from pg_namespace n
 where n.nspname = 'usage' and to_regclass('usage.state') is null

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
