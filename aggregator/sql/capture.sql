-- Run-time SQL of attach and detach. Braces are filled in by psycopg.sql: identifiers of the host's tables.

-- resolve --
-- A qualified name as the server reads it: quoted, and its oid or null.
select array_length(part, 1),
       quote_ident(part[1]) || '.' || quote_ident(part[2]),
       to_regclass(quote_ident(part[1]) || '.' || quote_ident(part[2]))::oid
  from parse_ident(%(name)s) part

-- relation --
select c.relkind::text, c.relpersistence::text, c.relispartition,
       c.relrowsecurity and not (r.rolsuper or r.rolbypassrls or (pg_has_role(c.relowner, 'USAGE') and not c.relforcerowsecurity)),
       pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner), current_user,
       has_table_privilege(c.oid, 'SELECT')
  from pg_class c, pg_roles r
 where c.oid = %(oid)s and r.rolname = current_user

-- columns --
-- Type names are those of the domains' bases; collation: null, or whether it is deterministic.
select a.attname::text, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null), a.attgenerated::text, l.collisdeterministic
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  left join pg_collation l on l.oid = a.attcollation
 where a.attrelid = %(oid)s and a.attnum > 0 and not a.attisdropped

-- unsupported_relation --
-- Inheritance children, and leaves that row triggers or crash safety do not reach.
select c.oid::regclass::text,
       case when not c.relispartition then 'inherits from it without being a partition'
            when c.relkind = 'f' then 'is a foreign table'
            else 'is not logged' end
  from pg_inherits i
  join pg_class c on c.oid = i.inhrelid
 where (i.inhparent = %(oid)s or i.inhparent in (select relid from pg_partition_tree(%(oid)s)))
   and (not c.relispartition or c.relkind = 'f' or c.relpersistence <> 'p')
 limit 1

-- has_index --
select exists (select from pg_index i
                 join pg_class c on c.oid = i.indexrelid
                 join pg_am m on m.oid = c.relam
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                where i.indrelid = %(oid)s and i.indisvalid and i.indpred is null
                  and m.amname = 'btree' and a.attname = %(column)s)

-- has_unique_id --
select exists (select from pg_index i
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                where i.indrelid = %(oid)s and i.indisvalid and i.indisunique and i.indimmediate
                  and i.indpred is null and i.indnkeyatts = 1 and a.attname = 'id')

-- is_table --
-- And no view, say, whose functions may be unsafe.
select c.relkind in ('r', 'p') from pg_class c where c.oid = to_regclass(%(name)s)

-- is_distributed --
-- Whether Citus keeps the rows of a table on other servers; only where its catalog is there.
select exists (select from pg_catalog.pg_dist_partition p where p.logicalrelid::oid = %(oid)s::oid)

-- knows_citus --
select to_regclass('pg_catalog.pg_dist_partition') is not null

-- knows_timescaledb --
select to_regclass('_timescaledb_catalog.hypertable') is not null

-- is_hypertable --
-- Whether TimescaleDB keeps the rows of a table in chunks; only where its catalog is there.
select exists (select from _timescaledb_catalog.hypertable h
                where to_regclass(format('%%I.%%I', h.schema_name, h.table_name))::oid = %(oid)s::oid)

-- attached_how --
select s.source, s.capture_mode = 'lookback', s.lookback_days from usage.state s

-- publications --
select pubname::text from pg_publication where puballtables order by 1

-- subscribed --
-- late_change is itself replicated to us: a trigger that fires for replicated events too would count them twice.
select exists (select from pg_subscription_rel where srrelid = 'usage.late_change'::regclass)

-- zone_valid_from --
-- The last first instant of a local day that has instants of that day before it: the local date ran backwards there.
-- Checked by the minute around each change of offset. The fence: else each start is worked out for each mention.
select coalesce(max(c.starts)::text, '-infinity')
  from (select d.day::date as day, usage.day_start(d.day::date, %(zone)s) as starts
          from generate_series(timestamp '1850-01-01', timestamp '2060-01-01', interval '1 day') d (day)
        offset 0) c,
       generate_series(1, 180) minute
 where (c.starts - interval '3 hours') at time zone %(zone)s + interval '3 hours' <> c.starts at time zone %(zone)s
   and usage.local_day(c.starts - make_interval(mins => minute), %(zone)s) >= c.day

-- oldest_event --
select exists (select from {source} e where e.created_at < %(instant)s::timestamptz)

-- event_body --
select e.created_at::pg_catalog.timestamptz, e.collection_id::pg_catalog.uuid, e.resource_type::pg_catalog.text, e.detail::pg_catalog.jsonb from {source} e

-- event_function --
create or replace function usage.event()
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language sql stable parallel {parallel} as {body}

-- event_between_body --
select e.created_at, e.collection_id, e.resource_type, e.detail from usage.event() e where e.created_at operator(pg_catalog.>=) $1 and ($2 is null or e.created_at operator(pg_catalog.<) $2)

-- event_between_function --
-- Inlined, so it has no search_path of its own: its operators are qualified.
create or replace function usage.event_between(since timestamptz, until timestamptz)
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language sql stable as {body}

-- next_event_body --
declare
    found timestamptz;
begin
    -- as a value, so that the planner knows the range
    execute 'select min(e.created_at) from usage.event_between($1, $2) e' into found using since, until;
    return found;
end

-- next_event_function --
create or replace function usage.next_event(since timestamptz, until timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as {body}

-- nth_event_body --
declare
    found timestamptz;
begin
    execute 'select e.created_at from usage.event_between($1, $2) e order by e.created_at offset $3 limit 1' into found using since, until, n;
    return found;
end

-- nth_event_function --
create or replace function usage.nth_event(since timestamptz, until timestamptz, n bigint) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as {body}

-- distributed_sums_body --
begin
    raise object_not_in_prerequisite_state using message = 'the source is not a table that Citus distributes';
end

-- distributed_sums_function --
create or replace function usage.distributed_sums(since timestamptz, until timestamptz)
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as {body}

-- collection_body --
select n.id::pg_catalog.uuid, n.title::pg_catalog.text from {titles} n

-- collection_function --
create or replace function usage.collection() returns table (id uuid, title text)
language sql stable parallel safe as {body}

-- no_collection_body --
select null::pg_catalog.uuid, null::pg_catalog.text where false

-- function_bodies --
select p.proname::text, p.prosrc from pg_proc p where p.pronamespace = 'usage'::regnamespace and p.proname = any(%(names)s)

-- stub_functions --
create or replace function usage.event()
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$ begin raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach'; end $$;
create or replace function usage.collection() returns table (id uuid, title text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$ begin raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach'; end $$

-- capture_body --
-- The source is known by its name, so a restored database needs no new function; PUBLIC may execute this (or the
-- host's role could not create a partition), so a trigger on any other table does nothing, nor does a further one on this.
declare
    frontier timestamptz;
    seal     timestamptz;
begin
    if tg_name not in ('usage_insert', 'usage_update', 'usage_delete')
       or not coalesce(tg_relid = pg_catalog.to_regclass({name})::oid
                       or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass({name})::oid, false) then
        return null;
    end if;
    -- What another server noted of a change comes along with it where late_change itself is subscribed to: not once more.
    if pg_catalog.current_setting('session_replication_role') = 'replica' then
        if exists (select from pg_catalog.pg_subscription_rel r where r.srrelid = 'usage.late_change'::pg_catalog.regclass) then
            return null;
        end if;
    end if;
    if tg_op = 'INSERT' then
        -- WHEN has found it late, or without an instant. Whatever comes to be there adds, also below the seal.
        if new.created_at is not null then
            insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
            values (1, new.created_at, new.collection_id, new.resource_type, new.detail, tg_relid);
        end if;
        return null;
    end if;
    frontier := usage.frontier_for_writers();
    seal := usage.seal_for_writers();
    -- Deletes and updates below the seal are a purge, and ignored.
    if old.created_at is not null
       and coalesce(old.created_at < frontier, true) and coalesce(old.created_at >= seal, true)
    then
        insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
        values (-1, old.created_at, old.collection_id, old.resource_type, old.detail, tg_relid);
    end if;
    if tg_op = 'UPDATE' and new.created_at is not null
       and coalesce(new.created_at < frontier, true)
       and coalesce(old.created_at >= seal or new.created_at >= seal, true)
    then
        insert into usage.late_change (sign, created_at, collection_id, resource_type, detail, leaf)
        values (1, new.created_at, new.collection_id, new.resource_type, new.detail, tg_relid);
    end if;
    return null;
end

-- capture_function --
create or replace function usage.capture() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as {body}

-- truncate_body --
begin
    if coalesce(tg_relid = pg_catalog.to_regclass({name})::oid
                or pg_catalog.pg_partition_root(tg_relid) = pg_catalog.to_regclass({name})::oid, false)
       and not (pg_catalog.current_setting('session_replication_role') = 'replica'
                and exists (select from pg_catalog.pg_subscription_rel r where r.srrelid = 'usage.truncate_marker'::pg_catalog.regclass)) then
        -- One marker is as good as two: where rows were replicated and the numbers were not, they may meet.
        insert into usage.truncate_marker (truncated) values (tg_relid::regclass::text) on conflict do nothing;
    end if;
    return null;
end

-- capture_truncate_function --
create or replace function usage.capture_truncate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as {body}

-- set_numbers --
-- Of runs and the like: where their rows were replicated, the numbers that are next were not.
select setval(pg_get_serial_sequence(t.name, 'id')::regclass, t.last)
  from (select 'usage.refresh_run', max(r.id) from usage.refresh_run r
        union all select 'usage.verification', max(v.id) from usage.verification v
        union all select 'usage.restatement', max(c.id) from usage.restatement c
        union all select 'usage.metric_history', max(h.id) from usage.metric_history h
        union all select 'usage.truncate_marker', max(m.id) from usage.truncate_marker m) t (name, last)
 where coalesce(pg_sequence_last_value(pg_get_serial_sequence(t.name, 'id')::regclass), 0) < t.last

-- late --
-- The frontier test: below the frontier, or unknown. In the WHEN clause, so that an ordinary insert calls no function. In as
-- few nodes as can be: each statement reads the clause from text (a third of what capture costs a single insert).
({row}.created_at < to_timestamp(pg_sequence_last_value('usage.frontier_seq') / '1e6'::float8)) is not false

-- unsealed --
({row}.created_at >= to_timestamp(pg_sequence_last_value('usage.seal_seq') / '1e6'::float8)) is not false

-- insert_trigger --
create trigger usage_insert after insert on {source} for each row
    when ({late_new})
    execute function usage.capture()

-- update_trigger --
-- detail is compared as text: 1.0 and 1.00 are equal as jsonb, but not as the text of a key. Last, because it costs most.
create trigger usage_update after update on {source} for each row
    when (({late_old} or {late_new})
          and (old.created_at is distinct from new.created_at
               or old.collection_id is distinct from new.collection_id
               or old.resource_type is distinct from new.resource_type
               or old.detail::text is distinct from new.detail::text))
    execute function usage.capture()

-- delete_trigger --
create trigger usage_delete after delete on {source} for each row
    when ({late_old} and {unsealed_old})
    execute function usage.capture()

-- truncate_trigger --
create trigger usage_truncate after truncate on {relation} for each statement
    execute function usage.capture_truncate()

-- tree --
-- The source and its partitions, each with its capture triggers and whether they fire as they should.
select tree.relid::oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text,
       coalesce(array_agg(t.tgname::text) filter (where t.tgname is not null), '{}'),
       coalesce(array_agg(t.tgname::text) filter (where t.tgenabled = %(enabled)s), '{}')
  from (select relid from pg_partition_tree(%(oid)s) union select %(oid)s::regclass) tree (relid)
  join pg_class c on c.oid = tree.relid
  join pg_namespace n on n.oid = c.relnamespace
  left join pg_trigger t on t.tgrelid = tree.relid
        and t.tgname in ('usage_insert', 'usage_update', 'usage_delete', 'usage_truncate')
 group by 1, 2, 3
 order by tree.relid <> %(oid)s::regclass, 1

-- captured_relations --
-- Whatever has triggers of ours, the source first. Clones go with the trigger that they are made from.
select quote_ident(n.nspname) || '.' || quote_ident(c.relname), array_agg(t.tgname::text order by t.tgname)
  from pg_trigger t
  join pg_class c on c.oid = t.tgrelid
  join pg_namespace n on n.oid = c.relnamespace
 where t.tgfoid in ('usage.capture()'::regprocedure, 'usage.capture_truncate()'::regprocedure)
   and t.tgparentid = 0
 group by c.oid, n.nspname, c.relname
 order by c.oid <> (select s.source_oid from usage.state s), c.oid

-- enable_trigger --
alter table {relation} enable {mode} trigger {trigger}

-- drop_trigger --
drop trigger if exists {trigger} on {relation}

-- lock_source --
lock table {source} in share row exclusive mode

-- lock_state --
select source, source_oid, title_source, time_zone, frontier, sealed_until, trusted, distrust_reason,
       usage.fingerprint_doubt(), usage.fingerprint() is not distinct from fingerprint, capture_mode, lookback_days, distributed
  from usage.state for update

-- lock_attached --
select source, title_source, distributed from usage.state where source is not null for update

-- set_attached --
update usage.state
   set source = %(source)s, source_oid = %(oid)s, title_source = %(titles)s, time_zone = %(zone)s,
       capture_mode = %(mode)s, lookback_days = %(lookback_days)s, distributed = %(distributed)s, zone_valid_from = %(valid_from)s::timestamptz, attached_at = clock_timestamp(),
       frontier = case when %(fresh)s then sealed_until else frontier end

-- set_seal --
-- The seal that writers see: a dump may have set it back, and a discarded seal must not swallow deletes. Lowered only
-- while nothing was attached: a sequence knows no rollback, and then no trigger reads it.
select case when s.sealed_until = '-infinity' and %(fresh)s
                then setval('usage.seal_seq', (select q.seqmin from pg_sequence q where q.seqrelid = 'usage.seal_seq'::regclass), false)
            when s.sealed_until <> '-infinity'
                then setval('usage.seal_seq', greatest((extract(epoch from s.sealed_until) * 1000000)::bigint,
                                                       case when not %(fresh)s then pg_sequence_last_value('usage.seal_seq') end))
       end
  from usage.state s

-- set_fingerprint --
update usage.state set fingerprint = usage.fingerprint(), storage = usage.storage()

-- distrust --
-- Also over an earlier reason: a repair that is under way must see that this happened after it began.
update usage.state
   set trusted = false, repair_day = null,
       distrust_reason = format('capture was restored after a gap, at %%s: run aggregator verify --repair', clock_timestamp())

-- set_detached --
-- Of discarded history there is nothing to say any more.
with discarded as (delete from usage.metric_history where %(discard)s)
update usage.state
   set source = null, source_oid = null, title_source = null, fingerprint = null, capture_mode = null, lookback_days = null, distributed = false, attached_at = null,
       sealed_until = case when %(discard)s then '-infinity' else sealed_until end,
       frontier = case when %(discard)s then '-infinity' else sealed_until end,
       trusted = true, distrust_reason = null, zone_valid_from = '-infinity', repair_day = null, version = version + 1,
       hourly_since = null

-- delete_captured --
with late as (delete from usage.late_change)
delete from usage.truncate_marker

-- delete_daily --
-- Rollups of days from the seal on; by DELETE, so that readers' snapshots stay whole.
delete from usage.daily_fact where day >= (select usage.seal_day(sealed_until, time_zone) from usage.state)

-- delete_daily_collection --
delete from usage.daily_collection_fact where day >= (select usage.seal_day(sealed_until, time_zone) from usage.state)

-- delete_daily_total --
delete from usage.daily_total where day >= (select usage.seal_day(sealed_until, time_zone) from usage.state)

-- delete_monthly --
delete from usage.monthly_fact
 where month >= (select usage.month_of(usage.seal_day(sealed_until, time_zone)) from usage.state)

-- delete_monthly_collection --
delete from usage.monthly_collection_fact
 where month >= (select usage.month_of(usage.seal_day(sealed_until, time_zone)) from usage.state)

-- delete_rolled_day --
delete from usage.rolled_day where day >= (select usage.seal_day(sealed_until, time_zone) from usage.state)

-- restore_monthly --
-- The days below the seal of the month that the seal cuts.
insert into usage.monthly_fact (month, key_id, event_count, total_value, secondary_value, rejected_count)
select usage.month_of(d.day), d.key_id, sum(d.event_count), sum(d.total_value), sum(d.secondary_value), sum(d.rejected_count)
  from usage.daily_fact d, usage.state s
 where isfinite(s.sealed_until)
   and d.day >= usage.month_of(usage.seal_day(s.sealed_until, s.time_zone))
   and d.day < usage.seal_day(s.sealed_until, s.time_zone)
 group by 1, 2

-- restore_monthly_collection --
insert into usage.monthly_collection_fact (month, key_id, event_count, total_value, secondary_value, rejected_count)
select usage.month_of(d.day), d.key_id, sum(d.event_count), sum(d.total_value), sum(d.secondary_value), sum(d.rejected_count)
  from usage.daily_collection_fact d, usage.state s
 where isfinite(s.sealed_until)
   and d.day >= usage.month_of(usage.seal_day(s.sealed_until, s.time_zone))
   and d.day < usage.seal_day(s.sealed_until, s.time_zone)
 group by 1, 2

-- rollups_left --
select exists (select from usage.daily_fact)

-- restore_grants --
select usage.restore_grants()
