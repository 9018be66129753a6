-- Back to 0001. The capture function of a source that is attached must not name a column that goes.
do $$ begin
    execute replace(replace(pg_get_functiondef('usage.capture()'::regprocedure), 'detail, leaf)', 'detail)'), 'detail, tg_relid)', 'detail)');
end $$;
create or replace function usage.fingerprint() returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select jsonb_object_agg(tree.relid::oid::text, coalesce(trigger.states, '')
               || case when tree.isleaf and not coalesce(trigger.truncate, false)
                       then ' file ' || coalesce(pg_relation_filenode(tree.relid)::text, '-') else '' end)
      from (select relid, isleaf
              from usage.state s, pg_partition_tree(to_regclass(s.source))
             union all  -- an ordinary table is no partition tree
            select to_regclass(s.source), true
              from usage.state s
             where to_regclass(s.source) is not null
               and not exists (select from pg_partition_tree(to_regclass(s.source)))) tree
      left join lateral (
           select string_agg(t.tgname || ' ' || t.tgenabled::text || ' ' || t.xmin::text, ', ' order by t.tgname) as states,
                  bool_or(t.tgname = 'usage_truncate'
                          and t.tgenabled = case (select s.capture_mode from usage.state s) when 'origin' then 'O' else 'A' end) as truncate
             from pg_trigger t
            where t.tgrelid = tree.relid
              and t.tgname in ('usage_insert', 'usage_update', 'usage_delete', 'usage_truncate')) trigger on true
$$;
create or replace function usage.fingerprint_doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s        usage.state;
    now_is   jsonb;
    relation record;
    filled   boolean;
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
    now_is := usage.fingerprint();
    if now_is = s.fingerprint then
        return null;
    end if;
    for relation in
        select coalesce(o.key, n.key)::oid as oid, o.value as old, n.value as new
          from jsonb_each_text(s.fingerprint) o full join jsonb_each_text(now_is) n on n.key = o.key
         where o.value is distinct from n.value
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
            execute format('select exists (select from %s where created_at < $1)', relation.oid::regclass)
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
    return null;
end $$;
alter table usage.late_change drop column leaf;
drop function usage.storage();
drop function usage.source_tree();
alter table usage.state drop column storage;
create or replace function usage.local_day(at timestamptz, zone text) returns date
language sql immutable parallel safe
return case
    when at >= '0001-01-03 00:00:00+00' and at < '9999-12-30 00:00:00+00' then (at at time zone zone)::date
    when at is null then null
    when at < '0001-01-01 00:00:00+00'::timestamptz - interval '2 days' then '-infinity'::date
    when at >= '10000-01-01 00:00:00+00'::timestamptz + interval '2 days' then 'infinity'::date
    when (at at time zone zone) < '0001-01-01'::timestamp then '-infinity'::date
    when (at at time zone zone) >= '10000-01-01'::timestamp then 'infinity'::date
    else (at at time zone zone)::date
end;
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
               sum(y.sign * y.event_count) as event_count,
               sum(usage.signed(y.sign, y.total_value)) as total_value,
               sum(usage.signed(y.sign, y.secondary_value)) as secondary_value,
               count(*) as rollup_rows
          from (select 1 as sign, m.collection_id, m.resource_type, m.job_type, m.model_level,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly m where $2 and m.month >= $16 and m.month < $17
                union all
                select $18, d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value
                  from usage.daily d where $2 and d.day >= $19 and d.day < $20
                union all
                select $21, d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value
                  from usage.daily d where $2 and d.day >= $22 and d.day < $23
                union all
                select 1, m.collection_id, m.resource_type, null, null,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly_collection m where $1 and not $2 and m.month >= $16 and m.month < $17
                union all
                select $18, d.collection_id, d.resource_type, null, null,
                       d.event_count, d.total_value, d.secondary_value
                  from usage.daily_collection d where $1 and not $2 and d.day >= $19 and d.day < $20
                union all
                select $21, d.collection_id, d.resource_type, null, null,
                       d.event_count, d.total_value, d.secondary_value
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
drop view usage.freshness;
create view usage.freshness as
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
       (select max(v.verified_at) from usage.verification v where v.differences = 0 or v.repaired) as last_verified
  from usage.state s;
comment on view usage.freshness is 'How fresh the rollups are and whether they may be believed; the answers are exact either way.';
comment on column usage.freshness.lag is 'Age of the frontier; null before the first refresh.';
comment on column usage.freshness.trusted is 'Whether readers use the rollups; if not, they read raw and are slow.';
comment on column usage.freshness.reason is 'Why they may not be used, with what to do.';
comment on column usage.freshness.pending_changes is 'Late changes waiting for the next refresh.';
comment on column usage.freshness.last_error is 'Error of the last finished refresh, null if it went well.';
drop function usage.problems(interval, interval, bigint, numeric, interval);
drop function usage.tail_events(bigint);
drop table usage.health_limit;
drop trigger metric_redefined on usage.metric;
drop trigger metric_changed on usage.metric;
create or replace function usage.metric_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update usage.state
       set trusted = false,
           -- the moment: a repair that is under way must see that this happened after it began
           distrust_reason = format('a metric was changed at %s: run aggregator verify --repair', clock_timestamp())
     where source is not null;
    return null;
end $$;
comment on function usage.metric_changed() is 'Trigger on usage.metric: turn trust off until the rollups are repaired.';
create trigger metric_changed after insert or update or delete or truncate on usage.metric
    for each statement execute function usage.metric_changed();
drop table usage.metric_history;
drop function usage.analyze_changed();
drop function usage.refresh_view(text);
drop table usage.view_refresh;
drop function usage.nightly_due(timestamptz, time, text);
drop table usage.job;
update usage.refresh_run set status = 'failed' where status = 'stopped';
alter table usage.refresh_run drop constraint refresh_run_status;
alter table usage.refresh_run add constraint refresh_run_status check (status in ('running', 'done', 'partial', 'failed'));
comment on column usage.refresh_run.status is
'running (or killed, if its process is gone); done; partial: late changes only, a writer stayed open; failed.';
alter table usage.monthly_collection drop constraint monthly_collection_month;
alter table usage.monthly drop constraint monthly_month;
alter table usage.state drop column repair_run;
alter table usage.state drop column repair_day;
alter table usage.state drop column version;
