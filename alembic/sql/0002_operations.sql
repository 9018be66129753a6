-- Operations: who is at work, when the materialized views were refreshed, what is wrong, what metrics were before; where
-- late changes come from. Faster reads.

-- Late changes of partitions that came and went ----------------------------------------------------------------------

alter table usage.late_change add column leaf oid;
comment on column usage.late_change.leaf is
'The table or partition that the event was in; null: compared with the raw events since, wherever it was.';

-- Partitions belong to whoever made them, and SELECT is granted on the source: so by its own name only where the role may.
-- Bounds let the planner read no other partition; those of a default partition do not.
create function usage.partition_rows(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
    select case when has_table_privilege(c.oid, 'SELECT') then format('%I.%I', n.nspname, c.relname)
                else format('(select e.created_at from %s e where e.tableoid = %s::oid and (%s))',
                            s.source, c.oid, coalesce(pg_get_partition_constraintdef(c.oid), 'true')) end
      from usage.state s, pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where c.oid = relation
$$;
comment on function usage.partition_rows(oid) is
'What to write in FROM for the events of a partition of the source: its name, or the source restricted to it where the role may not read the partition itself.';

-- Never waits for a lock that the host's DDL holds on some partition, however old. pg_partition_tree() locks every one of
-- them, and knows the newest catalogs, as the planner does; pg_inherits is read as of this statement's snapshot.
create function usage.source_tree() returns table (relid oid, isleaf boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1ms'
as $$
declare
    root oid := (select to_regclass(s.source)::oid from usage.state s);
begin
    return query select t.relid::oid, t.isleaf from pg_partition_tree(root) t;
    if not found and root is not null then  -- an ordinary table is no partition tree
        return query select root, true;
    end if;
exception when lock_not_available then
    return query
        with recursive tree as (
            select root as relid
            union
            select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid where not i.inhdetachpending
        )
        select c.oid, c.relkind <> 'p' from tree t join pg_class c on c.oid = t.relid where c.oid = root or c.relispartition;
end $$;
comment on function usage.source_tree() is 'The source and its partitions by oid, and whether each is a leaf: one that holds rows itself.';

-- The xmin of a trigger's catalog row changes when it is disabled and enabled again, even back to ALWAYS. A leaf
-- without our truncate trigger (a partition made after attach), or where it does not fire, is watched by its file
-- number instead.
create or replace function usage.fingerprint() returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select jsonb_object_agg(tree.relid::text, coalesce(trigger.states, '')
               || case when tree.isleaf and not coalesce(trigger.truncate, false)
                       then ' file ' || coalesce(pg_relation_filenode(tree.relid)::text, '-') else '' end)
      from usage.source_tree() tree
      left join lateral (
           select string_agg(t.tgname || ' ' || t.tgenabled::text || ' ' || t.xmin::text, ', ' order by t.tgname) as states,
                  bool_or(t.tgname = 'usage_truncate'
                          and t.tgenabled = case (select s.capture_mode from usage.state s) when 'origin' then 'O' else 'A' end) as truncate
             from pg_trigger t
            where t.tgrelid = tree.relid
              and t.tgname in ('usage_insert', 'usage_update', 'usage_delete', 'usage_truncate')) trigger on true
$$;

-- A crash empties what is UNLOGGED just then, and SET LOGGED afterwards leaves no other trace than a new file. A rewrite
-- alone is the host's good right. Statistics begin anew after a crash, and on a promoted standby, not after a shutdown.
create function usage.storage() returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object('reset', extract(epoch from pg_stat_get_bgwriter_stat_reset_time()),
                              'files', jsonb_object_agg(tree.relid::text, pg_relation_filenode(tree.relid)))
      from usage.source_tree() tree
     where tree.isleaf
$$;
comment on function usage.storage() is
'What would tell that a crash emptied a table of the source: when statistics began anew, and the file numbers of the leaves.';

alter table usage.state add column storage jsonb;
comment on column usage.state.storage is 'usage.storage() when a refresh last found nothing to doubt; null: not looked at yet.';

create or replace function usage.fingerprint_doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s        usage.state;
    now_is   jsonb;
    relation record;
    filled   boolean;
    found_is jsonb;
begin
    select * into strict s from usage.state;
    if s.source is null then
        return null;
    end if;
    if to_regclass(s.source) is null then
        return format('the source table %s is gone: restore it, or run aggregator detach', s.source);
    end if;
    if to_regclass(s.source)::oid <> s.source_oid then
        return format('another table bears the name %s: run aggregator attach, then verify --repair', s.source);
    end if;
    -- What no row trigger reaches, or no crash spares. attach refuses it, but it may have come since.
    with recursive tree as (
        select s.source_oid as relid
        union
        select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid
    )
    select c.oid::regclass::text as name,
           case when c.oid <> s.source_oid and not c.relispartition then 'child'
                when c.relkind = 'f' then 'foreign' else 'unlogged' end as kind
      into relation
      from tree t
      join pg_class c on c.oid = t.relid
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

-- Reads, made faster: whatever works out days takes a tenth of the time, an overview two thirds --------------------------

-- Constants only: with "- interval", which is not immutable, the planner does not inline it, and each call costs 2 µs.
create or replace function usage.local_day(at timestamptz, zone text) returns date
language sql immutable parallel safe
return case
    when at >= '0001-01-03 00:00:00+00' and at < '9999-12-30 00:00:00+00' then (at at time zone zone)::date
    when at is null then null
    when at < '0001-12-30 00:00:00+00 BC' then '-infinity'::date
    when at >= '10000-01-03 00:00:00+00' then 'infinity'::date
    when (at at time zone zone) < '0001-01-01'::timestamp then '-infinity'::date
    when (at at time zone zone) >= '10000-01-01'::timestamp then 'infinity'::date
    else (at at time zone zone)::date
end;

-- A sign is known to the planner where a part of the window is read, and no longer above.
create or replace function usage.window_rows(
    since timestamptz, until timestamptz, collection uuid, by_collection boolean, ai boolean, daily boolean)
returns table (
    section text, day date, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint, total_value numeric, secondary_value numeric,
    rollup_rows bigint, raw_rows bigint, pending_changes bigint,
    frontier timestamptz, exact boolean, reasons text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    p usage.window_parts := usage.window_parts(since, until);
begin
    return query execute $query$
    with raw as materialized (
        select case when $3 then usage.local_day(e.created_at, $14) end as day,
               e.collection_id, e.resource_type,
               case when $2 then e.job_type end as job_type,
               case when $2 then e.model_level end as model_level,
               sum(e.sign) as event_count,
               coalesce(sum(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0) as secondary_value,
               count(*) filter (where not e.late) as raw_rows,
               count(*) filter (where e.late) as late_rows
          from usage.measured($4, $5, $6, $7, $8, $9, $10, $11, $12, $13, null) e
         where ($15 is null or e.collection_id = $15)
           and ($1 or $3 or e.resource_type = 'ai')
         group by 1, 2, 3, 4, 5
    ), rollup as (
        select y.collection_id, y.resource_type,
               case when $2 then y.job_type end as job_type,
               case when $2 then y.model_level end as model_level,
               sum(y.event_count) as event_count,
               sum(y.total_value) as total_value,
               sum(y.secondary_value) as secondary_value,
               count(*) as rollup_rows
          from (select m.collection_id, m.resource_type, m.job_type, m.model_level,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly m where $2 and m.month >= $16 and m.month < $17
                union all
                select d.collection_id, d.resource_type, d.job_type, d.model_level,
                       $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                  from usage.daily d where $2 and d.day >= $19 and d.day < $20
                union all
                select d.collection_id, d.resource_type, d.job_type, d.model_level,
                       $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                  from usage.daily d where $2 and d.day >= $22 and d.day < $23
                union all
                select m.collection_id, m.resource_type, null, null,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly_collection m where $1 and not $2 and m.month >= $16 and m.month < $17
                union all
                select d.collection_id, d.resource_type, null, null,
                       $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                  from usage.daily_collection d where $1 and not $2 and d.day >= $19 and d.day < $20
                union all
                select d.collection_id, d.resource_type, null, null,
                       $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                  from usage.daily_collection d where $1 and not $2 and d.day >= $22 and d.day < $23) y
         where ($15 is null or y.collection_id = $15)
           and ($1 or y.resource_type = 'ai')
         group by 1, 2, 3, 4
    ), series as (
        select z.day, z.resource_type, sum(z.event_count) as event_count, sum(z.total_value) as total_value,
               sum(z.secondary_value) as secondary_value, sum(z.rollup_rows) as rollup_rows
          from (select t.day, t.resource_type, t.event_count, t.total_value, t.secondary_value, 1 as rollup_rows
                  from usage.daily_total t
                 where $3 and $15 is null and t.day >= $24 and t.day < $25
                union all
                select d.day, d.resource_type, d.event_count, d.total_value, d.secondary_value, 1
                  from usage.daily_collection d
                 where $3 and d.collection_id = $15 and d.day >= $24 and d.day < $25
                union all
                select r.day, r.resource_type, r.event_count, r.total_value, r.secondary_value, 0
                  from raw r where $3) z
         group by 1, 2
    ), key_sum as (
        select k.collection_id, k.resource_type, k.job_type, k.model_level, k.event_count, k.total_value, k.secondary_value
          from rollup k
        union all
        select r.collection_id, r.resource_type, r.job_type, r.model_level, r.event_count, r.total_value, r.secondary_value
          from raw r
    )
    select 'by_collection', null::date, k.collection_id, k.resource_type::text, null, null,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from key_sum k
     where $1
     group by k.collection_id, k.resource_type
    having sum(k.event_count) <> 0
    union all
    select 'ai_drilldown', null, k.collection_id, k.resource_type, k.job_type, k.model_level,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null, null, null, null, null, null
      from key_sum k
     where $2 and k.resource_type = 'ai'
     group by k.collection_id, k.resource_type, k.job_type, k.model_level
    having sum(k.event_count) <> 0
    union all
    select 'daily', s.day, null, s.resource_type, null, null,
           s.event_count::bigint, s.total_value, s.secondary_value, null, null, null, null, null, null
      from series s
     where $3 and s.event_count <> 0
    union all
    select 'receipt', null, null, null, null, null, null, null, null,
           coalesce((select sum(k.rollup_rows) from rollup k), 0)::bigint
               + coalesce((select sum(s.rollup_rows) from series s where $3), 0)::bigint,
           coalesce(sum(r.raw_rows), 0)::bigint, coalesce(sum(r.late_rows), 0)::bigint, $26, $27, $28
      from raw r
    $query$
    using by_collection, ai, daily,                                                     -- 1-3
          p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to,     -- 4-9
          p.tail_from, p.tail_to, p.late_from, p.late_to, p.zone, collection,           -- 10-15
          p.month_from, p.month_to, p.left_sign, p.left_from, p.left_to,                -- 16-20
          p.right_sign, p.right_from, p.right_to, p.day_from, p.day_to,                 -- 21-25
          p.frontier, p.exact, p.reasons;                                               -- 26-28
end $$;

-- State: what changed the rollups last, and how far a rebuild has come -----------------------------------------------

alter table usage.state add column version bigint not null default 0;
comment on column usage.state.version is 'Counts the transactions that changed the rollups: whoever derives something from them compares it.';
alter table usage.state add column repair_day date;
comment on column usage.state.repair_day is
'While a repair of all days is under way or was interrupted: the next day it has to compare. Null: none, or something happened since that it cannot know.';

alter table usage.state add column repair_run bigint not null default 0;
comment on column usage.state.repair_run is
'Which repair of all days repair_day belongs to: one that another began after it neither moves it nor turns trust on.';

alter table usage.refresh_run drop constraint refresh_run_status;
alter table usage.refresh_run add constraint refresh_run_status
    check (status in ('running', 'done', 'partial', 'failed', 'stopped'));
comment on column usage.refresh_run.status is
'running (or killed, if its process is gone); done; partial: late changes only, a writer stayed open; failed; stopped: by a signal, between steps.';

-- Months are first days -----------------------------------------------------------------------------------------------

-- NOT VALID first: a row that somebody moved already does not stop the upgrade; verify finds it.
alter table usage.monthly add constraint monthly_month check (month = usage.month_of(month)) not valid;
comment on constraint monthly_month on usage.monthly is 'A month is named by its first day: what lies elsewhere in it would count twice.';
alter table usage.monthly_collection add constraint monthly_collection_month check (month = usage.month_of(month)) not valid;
comment on constraint monthly_collection_month on usage.monthly_collection is
'A month is named by its first day: what lies elsewhere in it would count twice.';
do $$ begin  -- as what it is to tools that reflect the schema, unless such a row is there
    if not exists (select from usage.monthly m where m.month <> usage.month_of(m.month))
       and not exists (select from usage.monthly_collection m where m.month <> usage.month_of(m.month)) then
        alter table usage.monthly validate constraint monthly_month;
        alter table usage.monthly_collection validate constraint monthly_collection_month;
    end if;
end $$;

-- Who is at work ----------------------------------------------------------------------------------------------------

-- A lease and no session-level lock: it survives poolers, and frees itself when its holder is gone. Answers do not
-- depend on it: two refreshes at once are safe, and only do the work twice.
create table usage.job (
    name         text        not null,
    holder       text,
    claimed_at   timestamptz,
    lease_until  timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    done_for     timestamptz,
    failures     integer     not null default 0,
    retry_at     timestamptz,
    last_error   text,
    constraint job_pkey primary key (name),
    constraint job_lease check ((holder is null) = (lease_until is null))
);
comment on table usage.job is 'What schedulers and commands do one at a time: refresh, nightly, and the exclusive commands (purge, seal, rebuild, metric).';
comment on column usage.job.name is 'refresh, nightly or exclusive.';
comment on column usage.job.holder is 'Who is at it: command, host and process; null: nobody.';
comment on column usage.job.claimed_at is 'When the holder began.';
comment on column usage.job.lease_until is 'The holder is given up after this instant, unless it extends it.';
comment on column usage.job.started_at is 'When it was last begun by a scheduler.';
comment on column usage.job.finished_at is 'When it last went well.';
comment on column usage.job.done_for is 'nightly: the due instant that the last good run was for.';
comment on column usage.job.failures is 'Failures in a row.';
comment on column usage.job.retry_at is 'After a failure: not before this instant.';
comment on column usage.job.last_error is 'Why it failed last, in one line; null after a good run.';
insert into usage.job (name) values ('refresh'), ('nightly'), ('exclusive');

create function usage.nightly_due(at timestamptz, local_time time, zone text) returns timestamptz
language sql immutable parallel safe
return case
    when ((usage.local_day(at, zone) + local_time) at time zone zone) <= at then (usage.local_day(at, zone) + local_time) at time zone zone
    else (usage.local_day(at, zone) - 1 + local_time) at time zone zone
end;
comment on function usage.nightly_due(timestamptz, time, text) is
'The last instant, not after another, at which the nightly run is due: a local time of the reporting zone, once a local day, also on DST nights.';

-- Materialized views --------------------------------------------------------------------------------------------------

create table usage.view_refresh (
    view_name     text        not null,
    refreshed_at  timestamptz,
    as_of_day     date,
    version       bigint,
    constraint view_refresh_pkey primary key (view_name)
);
comment on table usage.view_refresh is 'When the materialized views were refreshed, and from which rollups.';
comment on column usage.view_refresh.view_name is 'The materialized view, in schema usage.';
comment on column usage.view_refresh.refreshed_at is 'The snapshot that it shows; null: never refreshed.';
comment on column usage.view_refresh.as_of_day is 'The local day of that snapshot.';
comment on column usage.view_refresh.version is 'usage.state.version of that snapshot.';
insert into usage.view_refresh (view_name) values ('trailing'), ('monthly_ranking');

create function usage.refresh_view(view_name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if view_name not in (select v.view_name from usage.view_refresh v) then
        raise undefined_table using message = format('%s is no materialized view of aggregator', view_name);
    end if;
    if (select c.relispopulated from pg_class c
         where c.oid = to_regclass(format('usage.%I', view_name))) then
        execute format('refresh materialized view concurrently usage.%I', view_name);
    else  -- the first time: there is nothing to read yet that could be blocked
        execute format('refresh materialized view usage.%I', view_name);
    end if;
end $$;
comment on function usage.refresh_view(text) is
'Refresh a materialized view of ours, CONCURRENTLY once it has been filled: for a role that does not own it.';

create function usage.analyze_changed() returns setof text
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms'
as $$
declare
    changed regclass;
begin
    for changed in
        select s.relid
          from pg_stat_user_tables s
          join pg_class c on c.oid = s.relid
         where s.schemaname = 'usage'
           and s.relname in ('daily', 'daily_collection', 'daily_total', 'monthly', 'monthly_collection', 'late_change',
                             'trailing', 'monthly_ranking')
           and s.n_mod_since_analyze > 50 + 0.05 * greatest(c.reltuples, 0)
         order by s.relname
    loop
        begin
            execute format('analyze %s', changed);
            return next changed::text;
        exception when lock_not_available then  -- a VACUUM is at it: the next time will do
            continue;
        end;
    end loop;
end $$;
comment on function usage.analyze_changed() is
'ANALYZE the rollups of which a twentieth changed since the last time, save those that a VACUUM holds; return their names.';

-- Metrics: only what changes a sum costs a rebuild ----------------------------------------------------------------------

create table usage.metric_history (
    id              bigint generated always as identity,
    resource_type   text collate "C" not null,
    value_key       text,
    secondary_key   text,
    unit            text,
    secondary_unit  text,
    label           text,
    valid_below     timestamptz not null,
    replaced_at     timestamptz not null default clock_timestamp(),
    constraint metric_history_pkey primary key (id),
    constraint metric_history_range unique (resource_type, valid_below)
);
comment on table usage.metric_history is
'Definitions of metrics that were replaced or removed while there was sealed history: below valid_below the rollups still add up by them.';
comment on column usage.metric_history.resource_type is 'The resource type.';
comment on column usage.metric_history.value_key is 'Key in detail that total_value added up; null: 0, or no metric.';
comment on column usage.metric_history.secondary_key is 'Key in detail that secondary_value added up; null: 0.';
comment on column usage.metric_history.unit is 'Unit of total_value then.';
comment on column usage.metric_history.secondary_unit is 'Unit of secondary_value then.';
comment on column usage.metric_history.label is 'What people called it then.';
comment on column usage.metric_history.valid_below is 'The seal when it was replaced: days below it keep this definition.';
comment on column usage.metric_history.replaced_at is 'When it was replaced.';

-- Which definition holds for an event: today's, or below the seal the one that its day was added up by ----------------------

create view usage.metric_definition as
select d.resource_type,
       coalesce(lag(d.valid_to) over of_type, '-infinity') as valid_from,
       d.valid_to,
       coalesce(lag(usage.local_day(d.valid_to, s.time_zone)) over of_type, '-infinity') as day_from,
       usage.local_day(d.valid_to, s.time_zone) as day_to,
       d.value_key, d.secondary_key, d.unit, d.secondary_unit
  from usage.state s,
       (select h.resource_type, h.valid_below as valid_to, h.value_key, h.secondary_key, h.unit, h.secondary_unit
          from usage.metric_history h
        union all
        select m.resource_type, null, m.value_key, m.secondary_key, m.unit, m.secondary_unit
          from usage.metric m) d
window of_type as (partition by d.resource_type order by d.valid_to);
comment on view usage.metric_definition is
'What a resource type adds up, for events with created_at in [valid_from, valid_to): the one home of which definition holds when.';
comment on column usage.metric_definition.resource_type is 'The resource type; of one that was removed there is no row for today.';
comment on column usage.metric_definition.valid_from is 'The instant from which on it holds; -infinity: always did.';
comment on column usage.metric_definition.valid_to is 'The instant below which it holds, a seal; null: it is today''s definition.';
comment on column usage.metric_definition.day_from is 'Local day of valid_from.';
comment on column usage.metric_definition.day_to is 'Local day of valid_to, exclusive.';
comment on column usage.metric_definition.value_key is 'Key in detail whose numbers add up to total_value; null: 0.';
comment on column usage.metric_definition.secondary_key is 'Key in detail whose numbers add up to secondary_value; null: 0.';
comment on column usage.metric_definition.unit is 'Unit of total_value.';
comment on column usage.metric_definition.secondary_unit is 'Unit of secondary_value.';

create function usage.definition_text(value_key text, unit text, secondary_key text, secondary_unit text) returns text
language sql immutable parallel safe
return coalesce(value_key || coalesce(' (' || unit || ')', ''), 'nothing')
    || coalesce(' and ' || secondary_key || coalesce(' (' || secondary_unit || ')', ''), '');
comment on function usage.definition_text(text, text, text, text) is
'What a definition adds up, for people: keys with their units.';

-- As before, but below the last valid_below of all the keys are looked up. Today's are joined all the same: a join that
-- compares instants costs a fold a twentieth, one comparison with a value known at the start a hundredth.
create or replace function usage.measured(
    head_sign integer, head_from timestamptz, head_to timestamptz,
    foot_sign integer, foot_from timestamptz, foot_to timestamptz,
    tail_from timestamptz, tail_to timestamptz,
    late_from timestamptz, late_to timestamptz, late_sign integer)
returns table (sign integer, late boolean, created_at timestamptz, collection_id uuid,
               resource_type text, job_type text, model_level text,
               value numeric, secondary numeric, rejected boolean)
language sql stable
begin atomic
select n.sign, n.late, n.created_at, n.collection_id,
       usage.key_text(n.resource_type) collate "C",
       usage.key_text(n.job_type) collate "C",
       usage.key_text(n.model_level) collate "C",
       usage.in_bounds(n.value_number),
       usage.in_bounds(n.secondary_number),
       usage.is_rejected(n.value, usage.in_bounds(n.value_number))
           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number))
  from (select j.*, usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number
          from (select r.sign, r.late, r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type,
                       r.detail ->> 'model_level' as model_level,
                       r.detail -> case when r.created_at < (select max(h.valid_below) from usage.metric_history h)
                                        then (select d.value_key from usage.metric_definition d
                                               where d.resource_type = r.resource_type collate "C" and r.created_at >= d.valid_from
                                                 and (d.valid_to is null or r.created_at < d.valid_to))
                                        else m.value_key end as value,
                       r.detail -> case when r.created_at < (select max(h.valid_below) from usage.metric_history h)
                                        then (select d.secondary_key from usage.metric_definition d
                                               where d.resource_type = r.resource_type collate "C" and r.created_at >= d.valid_from
                                                 and (d.valid_to is null or r.created_at < d.valid_to))
                                        else m.secondary_key end as secondary
                  from (select head_sign as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= head_from and e.created_at < head_to
                        union all
                        select foot_sign, false, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= foot_from and e.created_at < foot_to
                        union all
                        select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= tail_from and (tail_to is null or e.created_at < tail_to)
                        union all
                        select l.sign::integer, true, l.created_at, l.collection_id, l.resource_type, l.detail
                          from usage.late_change l
                         where l.created_at >= late_from and l.created_at < late_to
                           and (late_sign is null or l.sign = late_sign)) r
                  left join usage.metric m on m.resource_type = r.resource_type collate "C"
                offset 0) j
        offset 0) n;
end;

-- As before, with a reason where the window reaches days that were added up by another definition than today's.
create or replace function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    s           usage.state;
    p           usage.window_parts;
    doubt       text;
    top         timestamptz;   -- rollups are read below this instant, raw events from it on
    whole_below date;          -- months ending by this day may be taken whole
    last_day    date;          -- no day after this one has rollup rows
    d           date;
    first_at    timestamptz;
    next_at     timestamptz;
    next_from   date;
    last_from   date;
    bound       timestamptz;
begin
    select * into strict s from usage.state;
    if s.source is null then
        raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach';
    end if;
    doubt := usage.doubt();
    p.as_of := now();
    p.zone := s.time_zone;
    p.frontier := s.frontier;
    p.exact := true;
    p.reasons := array_remove(array[doubt, case when s.frontier = '-infinity' and s.sealed_until = '-infinity'
                                                then 'never refreshed: run aggregator refresh' end], null);
    if since is null or until <= since then
        return p;
    end if;
    if since < (select max(h.valid_below) from usage.metric_history h) then
        select p.exact and count(*) = 0,
               p.reasons || coalesce(array_agg(
                   format('%s %s adds up %s, as sealed; since then %s', d.resource_type,
                          case when isfinite(d.valid_from) then format('from %s to %s', d.day_from, d.day_to)
                               else format('before %s', d.day_to) end,
                          usage.definition_text(d.value_key, d.unit, d.secondary_key, d.secondary_unit),
                          usage.definition_text(n.value_key, n.unit, n.secondary_key, n.secondary_unit))
                   order by d.resource_type, d.valid_to), '{}')
          into p.exact, p.reasons
          from usage.metric_definition d
          left join usage.metric_definition n on n.resource_type = d.resource_type and n.valid_from = d.valid_to
          left join usage.metric m on m.resource_type = d.resource_type
         where since < d.valid_to and (until is null or until > d.valid_from)
           and (d.value_key, d.secondary_key, d.unit, d.secondary_unit)
               is distinct from (m.value_key, m.secondary_key, m.unit, m.secondary_unit);
    end if;
    top := case when doubt is null then s.frontier else s.sealed_until end;

    if until is null or until > top then
        p.tail_from := greatest(top, since);
        p.tail_to := until;
    end if;
    if since >= top then
        return p;
    end if;

    whole_below := case when doubt is null then 'infinity' else usage.local_day(top, s.time_zone) end;
    last_day := usage.local_day(top, s.time_zone);
    bound := least(until, top);   -- least() ignores a null

    -- left edge
    d := usage.local_day(since, s.time_zone);
    first_at := usage.day_start(d, s.time_zone);
    next_at := usage.day_start(usage.next_day(d), s.time_zone);
    if since < s.sealed_until and since > first_at then
        p.exact := false;
        p.reasons := p.reasons || format('the window starts inside %s, which is sealed: that day counts whole', d);
        p.day_from := d;
    elsif since <= first_at then
        p.day_from := d;
    elsif until < next_at and until < top then
        -- both ends in one day: raw, no rollups
        p.head_sign := 1;
        p.head_from := since;
        p.head_to := until;
        return p;
    elsif isfinite(d) and since - first_at < least(next_at, bound) - since then
        p.head_sign := -1;
        p.head_from := first_at;
        p.head_to := since;
        p.day_from := d;
    else
        p.head_sign := 1;
        p.head_from := since;
        p.head_to := least(next_at, bound);
        p.day_from := usage.next_day(d);
    end if;

    -- right edge
    if until is null or until >= top then
        p.day_to := case when doubt is null then 'infinity' else last_day end;
    else
        d := usage.local_day(until, s.time_zone);
        first_at := usage.day_start(d, s.time_zone);
        next_at := least(usage.day_start(usage.next_day(d), s.time_zone), top);
        if until < s.sealed_until and until > first_at then
            p.exact := false;
            p.reasons := p.reasons || format('the window ends inside %s, which is sealed: that day counts whole', d);
            p.day_to := usage.next_day(d);
        elsif until <= first_at then
            p.day_to := d;
        elsif isfinite(d) and p.day_from <= d and next_at - until < until - first_at then
            p.foot_sign := -1;
            p.foot_from := until;
            p.foot_to := next_at;
            p.day_to := usage.next_day(d);
        else
            p.foot_sign := 1;
            p.foot_from := first_at;
            p.foot_to := until;
            p.day_to := d;
        end if;
    end if;
    if p.day_from >= p.day_to then
        p.day_from := null;
        p.day_to := null;
        return p;
    end if;
    p.late_from := usage.day_start(p.day_from, s.time_zone);
    p.late_to := least(usage.day_start(p.day_to, s.time_zone), top);

    -- the whole days, from months and days
    next_from := case when p.day_from = usage.month_of(p.day_from) then p.day_from
                      else usage.next_month(usage.month_of(p.day_from)) end;
    last_from := usage.month_of(p.day_to);
    p.left_sign := 1;
    p.left_from := p.day_from;
    p.left_to := least(next_from, p.day_to);
    p.month_from := next_from;
    if next_from > p.day_from and next_from <= whole_below
       and p.day_from - usage.month_of(p.day_from) < least(p.left_to, last_day + 1) - p.day_from
       and (p.day_to >= next_from) then
        p.left_sign := -1;
        p.left_from := usage.month_of(p.day_from);
        p.left_to := p.day_from;
        p.month_from := p.left_from;
    end if;
    if p.day_to < next_from then
        -- inside one month
        p.month_from := null;
        return p;
    end if;
    p.month_to := last_from;
    if p.day_to > last_from then
        p.right_sign := 1;
        p.right_from := last_from;
        p.right_to := p.day_to;
        if usage.next_month(last_from) <= whole_below
           and least(usage.next_month(last_from), last_day + 1) - p.day_to < p.day_to - last_from then
            p.right_sign := -1;
            p.right_from := p.day_to;
            p.right_to := usage.next_month(last_from);
            p.month_to := p.right_to;
        end if;
    end if;
    return p;
end $$;
comment on function usage.window_parts(timestamptz, timestamptz) is
'The parts of the window [since, until) in this snapshot; until null: open. No event is read, but usage.state, metrics and catalogs.';

create or replace view usage.daily_live as
select l.day, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.day, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day < (select usage.rolled_until())
                union all
                select p.day, p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.day, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric_definition m
    on m.resource_type = l.resource_type and l.day >= m.day_from and (m.day_to is null or l.day < m.day_to);
comment on column usage.daily_live.unit is 'Unit of total_value by the definition that holds for the day.';
comment on column usage.daily_live.secondary_unit is 'Unit of secondary_value by the definition that holds for the day.';

create or replace view usage.monthly_live as
select l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.month, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select o.month, o.collection_id, o.resource_type, o.job_type, o.model_level,
                       o.event_count, o.total_value, o.secondary_value, o.rejected_count
                  from usage.monthly o
                 where o.month < (select usage.month_of(usage.rolled_until()))
                union all  -- of a month that is rolled up in part only, its days
                select usage.month_of(d.day), d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day >= (select usage.month_of(usage.rolled_until()))
                   and d.day < (select usage.rolled_until())
                union all
                select usage.month_of(p.day), p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.month, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric_definition m
    on m.resource_type = l.resource_type and l.month >= m.day_from
   and (m.day_to is null or usage.next_month(l.month) <= m.day_to);
comment on column usage.monthly_live.unit is
'Unit of total_value by the definition that holds for the whole month; null if it changed within the month: the sum is then of both.';
comment on column usage.monthly_live.secondary_unit is 'Unit of secondary_value, or null, likewise.';
comment on column usage.trailing.unit is
'Unit by today''s definition; days that were sealed with another one (usage.metric_definition) are summed as they were sealed.';
comment on column usage.monthly_ranking.change is
'total_value less that of the month before (0 if the key had none); of two definitions where unit is null or not the one of before.';

create or replace view usage.rejected_event as
select e.created_at, e.collection_id, e.resource_type, e.detail,
       array_remove(array[
           case when usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
                then m.value_key end,
           case when usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key)))
                then m.secondary_key end], null) as rejected_keys
  from usage.event() e
  join usage.metric_definition m
    on m.resource_type = e.resource_type collate "C" and e.created_at >= m.valid_from
   and (m.valid_to is null or e.created_at < m.valid_to)
 where e.created_at is not null
   and (usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
        or usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key))));

create or replace function usage.metric_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update usage.state
       set trusted = false, repair_day = null, version = version + 1,
           -- the moment: a repair that is under way must see that this happened after it began
           distrust_reason = format('a metric was changed at %s: run aggregator rebuild', clock_timestamp())
     where source is not null;
    return null;
end $$;
comment on function usage.metric_changed() is
'Trigger on usage.metric: turn trust off until the rollups are rebuilt, when what is added up was changed.';
drop trigger metric_changed on usage.metric;
create trigger metric_changed after insert or delete or truncate on usage.metric
    for each statement execute function usage.metric_changed();
create trigger metric_redefined after update on usage.metric
    for each row when (old.resource_type is distinct from new.resource_type or old.value_key is distinct from new.value_key
                       or old.secondary_key is distinct from new.secondary_key)
    execute function usage.metric_changed();

-- Health: the one home of what is wrong and what to do ------------------------------------------------------------------

create table usage.health_limit (
    id                    boolean  not null default true,
    max_lag               interval not null default '15 minutes',
    max_verification_age  interval not null default '3 days',
    max_pending_changes   bigint   not null default 1000000,
    max_rejected_share    numeric  not null default 0.01,
    max_frontier_ahead    interval not null default '1 minute',
    constraint health_limit_pkey primary key (id),
    constraint health_limit_one_row check (id)
);
comment on table usage.health_limit is 'One row: from where on usage.freshness calls something a problem; written by the scheduler from its settings.';
comment on column usage.health_limit.max_lag is 'Age of the frontier.';
comment on column usage.health_limit.max_verification_age is 'Time since rollups were last compared with raw events.';
comment on column usage.health_limit.max_pending_changes is 'Late changes waiting for a refresh.';
comment on column usage.health_limit.max_rejected_share is 'Part of the events of the last 30 days whose value is no number.';
comment on column usage.health_limit.max_frontier_ahead is 'How far the frontier may lie ahead of the clock.';
insert into usage.health_limit default values;

create function usage.tail_events(at_most bigint) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
declare
    found bigint;
begin
    if (select s.source is null from usage.state s) then
        return null;
    end if;
    execute 'select count(*) from (select from usage.event() e where e.created_at >= $1 limit $2) t'
       into found using (select s.frontier from usage.state s), at_most;
    return found;
exception when undefined_table or undefined_column then  -- renamed or dropped by the host: usage.problems() says so
    return null;
end $$;
comment on function usage.tail_events(bigint) is
'Events from the frontier on, which reads take raw; counted up to a limit. Null while nothing is attached.';

create function usage.problems(
    max_lag interval, max_verification_age interval, max_pending_changes bigint, max_rejected_share numeric, max_frontier_ahead interval)
returns table (code text, problem text, remedy text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD' set timezone = 'UTC'
as $$
declare
    s        usage.state;
    doubt    text;
    verified timestamptz;
    pending  bigint;
    share    numeric;
    failed   record;
    lacking  text;
begin
    select * into strict s from usage.state;
    if s.source is null then
        return query values ('not_attached', 'not attached', 'run aggregator attach');
        return;
    end if;

    doubt := usage.doubt();
    if doubt is not null then
        -- the reason has its remedy behind the last colon
        return query values ('untrusted', 'trust is off, so reads are slow: ' || regexp_replace(doubt, ': (run|restore|choose) .*$', ''),
                             coalesce(substring(doubt from ': ((run|restore|choose) .*)$'), 'run aggregator verify --repair'));
    end if;

    if s.frontier = '-infinity' then
        return query values ('never_refreshed', 'never refreshed, so reads are slow', 'run aggregator refresh');
    elsif isfinite(s.frontier) and clock_timestamp() - s.frontier > max_lag then
        return query values ('lag', format('the frontier is %s old: no refresh came through', date_trunc('second', clock_timestamp() - s.frontier)),
                             'run aggregator refresh; is aggregator schedule running?');
    end if;
    if isfinite(s.frontier) and s.frontier - clock_timestamp() > max_frontier_ahead then
        return query values ('ahead', format('the frontier lies in the future (%s): was the clock wrong? every new event is a late change', s.frontier),
                             'run aggregator rebuild --reset-frontier');
    end if;

    select count(*) into pending from usage.late_change l where l.created_at < s.frontier;
    if pending > max_pending_changes then
        return query values ('pending', format('%s late changes are waiting', pending), 'run aggregator refresh');
    end if;

    select max(v.verified_at) into verified from usage.verification v where v.differences = 0 or v.repaired;
    if clock_timestamp() - greatest(verified, s.attached_at) > max_verification_age then
        return query values ('unverified', format('last verified %s', coalesce(verified::text, 'never')),
                             'run aggregator verify; is aggregator schedule running?');
    end if;

    select sum(t.rejected_count) / nullif(sum(t.event_count), 0) into share
      from usage.daily_total t where t.day >= usage.local_day(now(), s.time_zone) - 30 and t.day <= usage.local_day(now(), s.time_zone);
    if share > max_rejected_share then
        return query values ('rejected', format('%s %% of the values of the last 30 days are no numbers and count as 0', round(share * 100, 1)),
                             'look at usage.rejected_event, and mend what writes them');
    end if;

    select j.name, j.last_error into failed from usage.job j where j.failures > 0 order by j.name desc limit 1;
    if found then
        return query values ('failed', format('the last %s run failed: %s', failed.name, failed.last_error), 'see its log; it is tried again');
    else
        select r.error into failed from usage.refresh_run r where r.finished_at is not null order by r.id desc limit 1;
        if failed.error is not null then
            return query values ('failed', format('the last refresh failed: %s', failed.error), 'run aggregator refresh');
        end if;
    end if;

    if not has_sequence_privilege('public', 'usage.frontier_seq', 'SELECT') or not has_sequence_privilege('public', 'usage.seal_seq', 'SELECT') then
        return query values ('grants', 'writers may not read the frontier sequences (a dump without privileges?)', 'run aggregator attach');
    end if;
    if isfinite(s.sealed_until)
       and coalesce(pg_sequence_last_value('usage.seal_seq') < extract(epoch from s.sealed_until) * 1000000, true) then
        return query values ('seal', 'the seal that writers see is behind: deletes of sealed events would count', 'run aggregator refresh');
    end if;

    select string_agg(c.name, ', ') into lacking
      from unnest(array['created_at', 'collection_id', 'resource_type', 'detail']) c (name)
     where to_regclass(s.source) is not null
       and not exists (select from pg_attribute a
                        where a.attrelid = to_regclass(s.source) and a.attname = c.name and not a.attisdropped);
    if lacking is not null then
        return query values ('source', format('%s has no column %s any more', s.source, lacking),
                             'name it as before, or run aggregator detach and attach a table that has it');
    elsif to_regclass(s.source) is not null
       and not exists (select from pg_index i
                         join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = 'created_at'
                         join pg_class c on c.oid = i.indexrelid
                         join pg_am m on m.oid = c.relam and m.amname = 'btree'
                        where i.indrelid = to_regclass(s.source) and i.indisvalid and i.indpred is null) then
        return query values ('source', format('%s has no index that leads with created_at any more, so reads and refreshes are slow', s.source),
                             format('CREATE INDEX ON %s (created_at)', s.source));
    end if;

    if s.title_source is not null then
        select string_agg(c.name, ', ') into lacking
          from unnest(array['id', 'title']) c (name)
         where not exists (select from pg_attribute a
                            where a.attrelid = to_regclass(s.title_source) and a.attname = c.name and not a.attisdropped);
        if lacking is not null then
            return query values (
                'titles',
                case when to_regclass(s.title_source) is null then format('the title table %s is gone or bears another name', s.title_source)
                     else format('%s has no column %s any more', s.title_source, lacking) end || ', so reads that show titles fail',
                'name it as before, or set AGGREGATOR_TITLE_TABLE (none: without titles) and run aggregator attach');
        end if;
    end if;
end $$;
comment on function usage.problems(interval, interval, bigint, numeric, interval) is
'What is wrong, each with a stable code and what to do; no row: healthy. The limits are those of usage.health_limit or of the caller.';

create or replace view usage.freshness as
select now() as as_of,
       s.source is not null as attached,
       s.time_zone,
       s.frontier,
       case when isfinite(s.frontier) then now() - s.frontier end as lag,
       usage.doubt() is null as trusted,
       usage.doubt() as reason,
       (select count(*) from usage.late_change l where l.created_at < s.frontier) as pending_changes,
       s.sealed_until,
       (select max(r.finished_at) from usage.refresh_run r where r.status = 'done') as last_refreshed,
       (select r.error from usage.refresh_run r where r.finished_at is not null order by r.id desc limit 1) as last_error,
       (select max(v.verified_at) from usage.verification v where v.differences = 0 or v.repaired) as last_verified,
       p.problems = '{}' as healthy,
       p.problems
  from usage.state s,
       lateral (select coalesce(array_agg(q.problem || ': ' || q.remedy), '{}') as problems
                  from usage.health_limit h,
                       usage.problems(h.max_lag, h.max_verification_age, h.max_pending_changes, h.max_rejected_share, h.max_frontier_ahead) q) p;
comment on column usage.freshness.healthy is 'Whether nothing needs anybody, by the limits of usage.health_limit.';
comment on column usage.freshness.problems is 'What is wrong, with what to do.';

-- Materialized view with its day ---------------------------------------------------------------------------------------

-- Beside the old one until it has that one's privileges.
create materialized view usage.dated_ranking as
select usage.local_day(now(), s.time_zone) as as_of_day, l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title,
       l.resource_type, l.job_type, l.model_level, l.unit, l.event_count, l.total_value,
       l.total_value / nullif(sum(l.total_value) over of_type, 0) as share,
       rank() over (of_type order by l.total_value desc) as rank,
       l.total_value - case when lag(l.month) over of_key = (l.month - interval '1 month')::date
                            then lag(l.total_value) over of_key else 0 end as change
  from usage.state s, usage.monthly_live l
window of_type as (partition by l.month, l.resource_type),
       of_key as (partition by l.collection_id, l.resource_type, l.job_type, l.model_level order by l.month)
  with no data;

-- Privileges ------------------------------------------------------------------------------------------------------------

-- Until deploy/roles.sql is run again: whoever could read or refresh still can, with what is new or in another's place.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant %s to %s%s',
                      replace(n.new, '*', a.privilege_type), case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                      case when a.is_grantable then ' with grant option' else '' end)
          from (values
                   ('usage.monthly_ranking', null, '* on usage.dated_ranking'),
                   -- the view calls it, with its reader's rights
                   ('usage.freshness', 'SELECT', 'execute on function usage.problems(interval, interval, bigint, numeric, interval)'),
                   ('usage.state', 'UPDATE', 'select, update on usage.job, usage.view_refresh, usage.health_limit'),
                   ('usage.state', 'UPDATE', 'select on usage.metric_history'),
                   ('usage.metric', 'SELECT', 'select on usage.metric_definition'),
                   ('usage.daily_live', 'SELECT', 'execute on function usage.local_day(timestamptz, text), usage.next_month(date)'),
                   ('usage.frontier_seq', 'UPDATE', 'update on sequence usage.seal_seq')
               ) n (old, privilege, new)
          join pg_class c on c.oid = n.old::regclass,
               lateral aclexplode(c.relacl) a
         where a.grantee <> c.relowner and (n.privilege is null or a.privilege_type = n.privilege)
        union all
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc new, pg_proc old, aclexplode(old.proacl) a
         where old.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, old.proowner)
           and new.pronamespace = 'usage'::regnamespace
           and new.proname in ('partition_rows', 'source_tree', 'storage', 'nightly_due', 'refresh_view', 'analyze_changed', 'tail_events', 'problems')
    loop
        execute statement;
    end loop;
end $$;

drop materialized view usage.monthly_ranking;
alter materialized view usage.dated_ranking rename to monthly_ranking;
create unique index monthly_ranking_key
    on usage.monthly_ranking (month, collection_id, resource_type, job_type, model_level) nulls not distinct;
comment on materialized view usage.monthly_ranking is
'Each key''s sum in a month, its share and rank among those of its resource type, and the change on the month before.';
comment on column usage.monthly_ranking.as_of_day is 'The local day of the refresh: the running month counts up to then.';
comment on column usage.monthly_ranking.share is 'Part of the month''s total_value of the same resource type, 0 to 1; null if that is 0.';
comment on column usage.monthly_ranking.rank is 'By total_value within month and resource type, 1 the largest.';
comment on column usage.monthly_ranking.change is 'total_value less that of the month before (0 if the key had none).';

select usage.restore_grants();
