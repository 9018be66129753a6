-- What every read asks first: whether the rollups may be believed.

-- A look at the partitions locks each of them: where PostgreSQL has no room for so many locks, they are read from pg_inherits,
-- as when one of them is locked.
create or replace function usage.source_tree() returns table (relid oid, isleaf boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1ms'
as $$
declare
    root oid := (select to_regclass(s.source)::oid from usage.state s);
begin
    return query select t.relid::oid, t.isleaf from pg_partition_tree(root) t;
    if not found and root is not null then  -- an ordinary table is no partition tree
        return query select root, true;
    end if;
exception when lock_not_available or out_of_memory then
    return query
        with recursive tree as (
            select root as relid
            union
            select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid where not i.inhdetachpending
        )
        select c.oid, c.relkind <> 'p' from tree t join pg_class c on c.oid = t.relid where c.oid = root or c.relispartition;
end $$;

-- The triggers of all partitions in one look, rather than one after the other.
create or replace function usage.fingerprint() returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    with tree as materialized (
        select t.relid, t.isleaf from usage.source_tree() t
    )
    select jsonb_object_agg(tree.relid::text, coalesce(trigger.states, '')
               || case when tree.isleaf and not coalesce(trigger.truncate, false)
                       then ' file ' || coalesce(pg_relation_filenode(tree.relid)::text, '-') else '' end)
      from tree
      left join (
           select t.tgrelid,
                  string_agg(t.tgname || ' ' || t.tgenabled::text || ' ' || t.xmin::text, ', ' order by t.tgname) as states,
                  bool_or(t.tgname = 'usage_truncate'
                          and t.tgenabled = case (select s.capture_mode from usage.state s) when 'origin' then 'O' else 'A' end) as truncate
             from pg_trigger t
            where t.tgrelid = any (array(select r.relid from tree r))
              and t.tgname in ('usage_insert', 'usage_update', 'usage_delete', 'usage_truncate')
            group by t.tgrelid) trigger on trigger.tgrelid = tree.relid
$$;

create or replace function usage.fingerprint_doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s        usage.state;
    now_is   jsonb;
    relation record;
    filled   boolean;
    found_is jsonb;
    by_lookback boolean;
begin
    select * into strict s from usage.state;
    if s.source is null then
        return null;
    end if;
    by_lookback := s.capture_mode = 'lookback';
    if to_regclass(s.source) is null then
        return format('the source%s %s is gone: restore it, or run aggregator detach', case when by_lookback then '' else ' table' end, s.source);
    end if;
    if to_regclass(s.source)::oid <> s.source_oid then
        return format('another %s bears the name %s: run aggregator attach, then verify --repair',
                      case when by_lookback then 'relation' else 'table' end, s.source);
    end if;
    if by_lookback then  -- no more is known of a source without triggers
        return null;
    end if;
    -- What no row trigger reaches, or no crash spares. attach refuses it, but it may have come since.
    -- Each relation is looked up: the planner, which does not know how many there are, would join all those of the database.
    with recursive tree as (
        select s.source_oid as relid
        union
        select i.inhrelid
          from tree t, lateral (select h.inhrelid from pg_inherits h where h.inhparent = t.relid and not h.inhdetachpending offset 0) i
         where (select r.relhassubclass from pg_class r where r.oid = t.relid)
    )
    select c.oid::regclass::text as name,
           case when c.oid <> s.source_oid and not c.relispartition then 'child'
                when c.relkind = 'f' then 'foreign' else 'unlogged' end as kind
      into relation
      from tree t,
           lateral (select r.oid, r.relispartition, r.relkind, r.relpersistence from pg_class r where r.oid = t.relid offset 0) c
     where (c.oid <> s.source_oid and not c.relispartition) or c.relkind = 'f' or c.relpersistence <> 'p'
     order by c.oid
     limit 1;
    if found then
        return format(case relation.kind
            when 'child' then '%1$s inherits from the source without being a partition, so its rows are not captured:'
                              ' run ALTER TABLE %1$s NO INHERIT %2$s, then aggregator attach and verify --repair'
            when 'foreign' then '%1$s is a foreign table, whose rows change unseen:'
                                ' run ALTER TABLE %2$s DETACH PARTITION %1$s, then aggregator verify --repair'
            else '%1$s is not logged, so a crash empties it unseen:'
                 ' run ALTER TABLE %1$s SET LOGGED, then aggregator attach and verify --repair' end, relation.name, s.source);
    end if;
    -- After a TRUNCATE all is folded anew in any case.
    if s.storage -> 'reset' <> to_jsonb(extract(epoch from pg_stat_get_bgwriter_stat_reset_time()))
       and not exists (select from usage.truncate_marker)
    then
        found_is := usage.storage() -> 'files';
        for relation in
            select f.key::oid as oid from jsonb_each(s.storage -> 'files') f where f.value <> found_is -> f.key order by 1
        loop
            return format('the server crashed and %s was rewritten since the last refresh, so if it was UNLOGGED meanwhile it lost'
                          ' events: run aggregator verify --repair', relation.oid::regclass);
        end loop;
    end if;
    now_is := usage.fingerprint();
    for relation in
        select coalesce(o.key, n.key)::oid as oid, o.value as old, n.value as new
          from jsonb_each_text(s.fingerprint) o full join jsonb_each_text(now_is) n on n.key = o.key
         where now_is <> s.fingerprint and o.value is distinct from n.value
         order by 1
    loop
        if relation.new is null then
            return format('partition %s of the source is gone: run aggregator verify --repair to follow, or seal to keep its history',
                          relation.oid::regclass);
        elsif relation.old is not null then
            return format('capture on %s was changed (triggers or file): run aggregator attach, then verify --repair',
                          relation.oid::regclass);
        end if;
        -- A new partition that was created empty is filled through its triggers: only one that brought rows along
        -- from below the frontier is in doubt.
        if (select relkind from pg_class c where c.oid = relation.oid) <> 'p' then
            execute format('select exists (select from %s p where p.created_at < $1)', usage.partition_rows(relation.oid))
               into filled using s.frontier;
            if filled then
                return format('partition %s of the source is new and holds events below the frontier: run aggregator refresh',
                              relation.oid::regclass);
            elsif usage.is_rewritten(relation.oid, relation.new) then
                return format('partition %s of the source is new and was truncated or rewritten: run aggregator refresh',
                              relation.oid::regclass);
            end if;
        end if;
        if not usage.is_captured(relation.new, s.capture_mode) then
            return format('partition %s of the source is not captured: run aggregator attach, then verify --repair',
                          relation.oid::regclass);
        end if;
    end loop;
    -- A partition that was made, took late events and went, all since the last refresh, is in neither fingerprint.
    -- What is replicated to us bears the oids of another server.
    if s.capture_mode = 'always' and (select relkind from pg_class c where c.oid = s.source_oid) = 'p'
       and exists (select from usage.late_change l
                    where l.created_at >= s.sealed_until and l.created_at < s.frontier and l.leaf is not null
                      and not exists (select from jsonb_object_keys(now_is) k where k::oid = l.leaf))
    then
        return 'a partition of the source came and went, with late events: run aggregator refresh';
    end if;
    return null;
end $$;

-- One line each of functions that are as they were: hours can be had elsewhere, and a view or foreign table has no index.
do $$
declare
    patched record;
    text    text;
begin
    for patched in
        select *
          from (values
                   ('usage.totals(timestamptz, timestamptz, text[], text, boolean, uuid)',
                    'grain: there is no hourly rollup; use day, week, month or none',
                    'grain: sums are by day, week, month or none; hours are in usage.hourly, if aggregator attach --hourly was run'),
                   ('usage.problems(interval, interval, bigint, numeric, interval)',
                    'elsif to_regclass(s.source) is not null
       and not exists (select from pg_index i',
                    'elsif (select c.relkind in (''r'', ''p'') from pg_class c where c.oid = to_regclass(s.source))
       and not exists (select from pg_index i')) p (function, old, new)
    loop
        text := pg_get_functiondef(patched.function::regprocedure);
        if position(patched.old in text) = 0 then
            raise 'migration 0004 does not know this %', patched.function;
        end if;
        execute replace(text, patched.old, patched.new);
    end loop;
end $$;
