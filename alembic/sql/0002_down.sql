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
drop function usage.partition_rows(oid);
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
create materialized view usage.undated_ranking as
select l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title,
       l.resource_type, l.job_type, l.model_level, l.unit, l.event_count, l.total_value,
       l.total_value / nullif(sum(l.total_value) over of_type, 0) as share,
       rank() over (of_type order by l.total_value desc) as rank,
       l.total_value - case when lag(l.month) over of_key = (l.month - interval '1 month')::date
                            then lag(l.total_value) over of_key else 0 end as change
  from usage.monthly_live l
window of_type as (partition by l.month, l.resource_type),
       of_key as (partition by l.collection_id, l.resource_type, l.job_type, l.model_level order by l.month)
  with no data;
create view usage.old_freshness as
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
do $$
declare
    statement text;
begin
    for statement in
        select format('grant %s on %s to %s%s',
                      a.privilege_type, n.new, case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                      case when a.is_grantable then ' with grant option' else '' end)
          from (values ('usage.monthly_ranking', 'usage.undated_ranking'), ('usage.freshness', 'usage.old_freshness')) n (old, new)
          join pg_class c on c.oid = n.old::regclass,
               lateral aclexplode(c.relacl) a
         where a.grantee <> c.relowner
    loop
        execute statement;
    end loop;
end $$;
drop materialized view usage.monthly_ranking;
alter materialized view usage.undated_ranking rename to monthly_ranking;
drop view usage.freshness;
alter view usage.old_freshness rename to freshness;
comment on view usage.freshness is 'How fresh the rollups are and whether they may be believed; the answers are exact either way.';
comment on column usage.freshness.lag is 'Age of the frontier; null before the first refresh.';
comment on column usage.freshness.trusted is 'Whether readers use the rollups; if not, they read raw and are slow.';
comment on column usage.freshness.reason is 'Why they may not be used, with what to do.';
comment on column usage.freshness.pending_changes is 'Late changes waiting for the next refresh.';
comment on column usage.freshness.last_error is 'Error of the last finished refresh, null if it went well.';
create unique index monthly_ranking_key
    on usage.monthly_ranking (month, collection_id, resource_type, job_type, model_level) nulls not distinct;
comment on materialized view usage.monthly_ranking is
'Each key''s sum in a month, its share and rank among those of its resource type, and the change on the month before.';
comment on column usage.monthly_ranking.share is 'Part of the month''s total_value of the same resource type, 0 to 1; null if that is 0.';
comment on column usage.monthly_ranking.rank is 'By total_value within month and resource type, 1 the largest.';
comment on column usage.monthly_ranking.change is 'total_value less that of the month before (0 if the key had none).';
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
create or replace view usage.rejected_event as
select e.created_at, e.collection_id, e.resource_type, e.detail,
       array_remove(array[
           case when usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
                then m.value_key end,
           case when usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key)))
                then m.secondary_key end], null) as rejected_keys
  from usage.event() e
  join usage.metric m on m.resource_type = e.resource_type collate "C"
 where e.created_at is not null
   and (usage.is_rejected(e.detail -> m.value_key, usage.in_bounds(usage.parsed_number(e.detail -> m.value_key)))
        or usage.is_rejected(e.detail -> m.secondary_key, usage.in_bounds(usage.parsed_number(e.detail -> m.secondary_key))));
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
  left join usage.metric m on m.resource_type = l.resource_type;
comment on column usage.trailing.unit is null;
comment on column usage.monthly_ranking.change is 'total_value less that of the month before (0 if the key had none).';
comment on column usage.monthly_live.unit is null;
comment on column usage.monthly_live.secondary_unit is null;
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
  left join usage.metric m on m.resource_type = l.resource_type;
comment on column usage.daily_live.unit is null;
comment on column usage.daily_live.secondary_unit is null;
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
'The parts of the window [since, until) in this snapshot; until null: open. Nothing is read but usage.state and catalogs.';
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
                       r.detail -> m.value_key as value,
                       r.detail -> m.secondary_key as secondary
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
drop function usage.definition_text(text, text, text, text);
drop view usage.metric_definition;
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
