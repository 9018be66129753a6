-- Shadows of all that an unqualified name, operator or type could mean: whatever is reached fails, and counts.
create schema evil;
create sequence evil.sprung;
grant usage on schema evil to public;
grant usage on sequence evil.sprung to public;

create function evil.spring(name text) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    begin
        perform nextval('evil.sprung');  -- stays, whatever is rolled back
    exception when others then
        null;  -- in a read-only transaction the error below has to do
    end;
    raise exception 'a trap was sprung as %: %', current_user, name using errcode = 'TRAP0';
end $$;

do $do$
declare
    it     record;
    types  constant regtype[] := array['text', 'name', 'jsonb', 'timestamptz', 'timestamp', 'date', 'interval', 'uuid', 'numeric',
                                       'int2', 'int4', 'int8', 'float8', 'bool', 'oid', 'text[]', 'anyarray', 'anyelement',
                                       'anycompatible', 'anycompatiblearray', 'anynonarray', 'record', 'regclass', '"char"'];
    spring constant text := 'begin perform evil.spring(%L); return null; end';
begin
    for it in
        select p.proname, pg_get_function_identity_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
          from pg_proc p
         where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset
           and p.prolang <> (select l.oid from pg_language l where l.lanname = 'c')
           and not exists (select from unnest(p.proargtypes || p.prorettype) t
                            where t::regtype in ('internal', 'cstring', '"any"', 'trigger', 'event_trigger', 'language_handler',
                                                 'index_am_handler', 'table_am_handler', 'fdw_handler', 'tsm_handler', 'void'))
    loop
        begin
            execute format('create function evil.%I(%s) returns %s language plpgsql as %L',
                           it.proname, it.arguments, it.result, format(spring, it.proname));
        exception when others then
            null;  -- what plpgsql cannot be declared with
        end;
    end loop;

    for it in
        select o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, o.oprresult::regtype as result, row_number() over () as n
          from pg_operator o
         where o.oprnamespace = 'pg_catalog'::regnamespace and (o.oprleft = 0 or o.oprleft = any (types)) and o.oprright = any (types)
    loop
        execute format('create function evil.operator_%s(%s) returns %s language plpgsql as %L', it.n,
                       concat_ws(', ', nullif(it.l::text, '-'), it.r), it.result, format(spring, it.oprname));
        execute format('create operator evil.%s (%s rightarg = %s, function = evil.operator_%s)', it.oprname,
                       case when it.l::text = '-' then '' else format('leftarg = %s,', it.l) end, it.r, it.n);
    end loop;

    for it in
        select p.proname, oidvectortypes(p.proargtypes) as arguments, row_number() over () as n
          from pg_proc p
         where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'a' and p.pronargs = 1 and p.proargtypes[0] = any (types)
    loop
        execute format('create function evil.step_%s(text, %s) returns text language plpgsql as %L', it.n, it.arguments,
                       format(spring, it.proname));
        begin
            execute format('create aggregate evil.%I(%s) (sfunc = evil.step_%s, stype = text)', it.proname, it.arguments, it.n);
        exception when others then
            null;
        end;
    end loop;

    -- No value fits these.
    for it in select t::text as name from unnest(types) t where t not in ('anyarray', 'anyelement', 'anycompatible', 'anycompatiblearray',
                                                                          'anynonarray', 'record', 'text[]', '"char"')
    loop
        execute format('create domain evil.%I as pg_catalog.text check (false)', (select y.typname from pg_type y where y.oid = it.name::regtype));
    end loop;

    -- And none has the columns of these.
    for it in
        select distinct c.relname from pg_class c
         where c.relkind in ('r', 'v', 'm', 'S')
           and c.relnamespace in ('pg_catalog'::regnamespace, 'usage'::regnamespace, 'public'::regnamespace)
           and c.relname not in (select typname from pg_type t where t.typnamespace = 'evil'::regnamespace)
    loop
        execute format('create view evil.%I as select 1 as trap', it.relname);
    end loop;
end $do$;

do $do$
declare
    it record;
begin
    for it in select p.proname, pg_get_function_identity_arguments(p.oid) as arguments from pg_proc p
               where p.pronamespace = 'usage'::regnamespace and not p.proretset and p.prorettype <> 'trigger'::regtype
                 and pg_get_function_identity_arguments(p.oid) not like '%usage.%'  -- ours shall go without them
    loop
        begin
            execute format('create function evil.%I(%s) returns text language plpgsql as %L', it.proname, it.arguments,
                           format('begin perform evil.spring(%L); return null; end', it.proname));
        exception when others then
            null;
        end;
    end loop;
end $do$;
grant execute on all functions in schema evil to public;
