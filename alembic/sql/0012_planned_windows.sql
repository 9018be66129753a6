-- Reads of all collections whose statement is planned once a session.

-- For usage.window_rows() a statement is written for each window, and planned: 2.5 ms, a quarter of what 30 days to the second
-- take. What is read of all collections is the same whatever the window: some quarters, months, days and hours of the rollups,
-- and some ranges of events. So here, too, bounds are parameters. What a window has not, has null for bounds: that is an index
-- scan which ends before it begins.
--
-- That is no worse only where the plan does not depend on how long the ranges are: an index leads to them, and they are too short
-- for parallel workers.

create function usage.whole_quarters(p usage.window_parts, out quarter_from date, out quarter_to date)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    quarter_from := p.month_to;
    quarter_to := p.month_to;
    if (select s.has_quarters from usage.state s) then
        quarter_from := usage.quarter_of(p.month_from);
        if quarter_from < p.month_from then
            quarter_from := usage.next_quarter(quarter_from);
        end if;
        quarter_to := usage.quarter_of(p.month_to);
        if quarter_from >= quarter_to then
            quarter_from := p.month_to;
            quarter_to := p.month_to;
        end if;
    end if;
end $$;
comment on function usage.whole_quarters(usage.window_parts) is
'The quarters [quarter_from, quarter_to) of a window''s months: those before and behind them are read as months. None: both are where the months end.';

-- As before, but for what is in usage.whole_quarters().
create or replace function usage.days_sql(p usage.window_parts, by_key boolean, by_months boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    level constant text := case when by_key then '_fact' else '_collection_fact' end;
    keys  constant integer[] := usage.keys_of(collection, by_key);
    -- No rollup row lies past the frontier's day.
    last       constant date := usage.next_day(usage.local_day(p.frontier, p.zone));
    last_month constant date := least(p.month_to, usage.next_month(usage.month_of(last)));
    quarter_from date := p.month_to;
    quarter_to   date := p.month_to;
begin
    if not by_months then
        return usage.fact_sql('daily' || level, p.day_from, least(p.day_to, last), 1, keys, bucket);
    end if;
    if not by_key and coalesce(position('*' in bucket) = 0, true) then
        select q.quarter_from, q.quarter_to into quarter_from, quarter_to from usage.whole_quarters(p) q;
    end if;
    return nullif(concat_ws(' union all ',
        usage.fact_sql('quarterly' || level, quarter_from, least(quarter_to, usage.next_quarter(usage.quarter_of(last))), 1, keys, bucket),
        usage.fact_sql('monthly' || level, p.month_from, least(quarter_from, last_month), 1, keys, bucket),
        usage.fact_sql('monthly' || level, quarter_to, last_month, 1, keys, bucket),
        usage.fact_sql('daily' || level, p.left_from, least(p.left_to, last), p.left_sign, keys, bucket),
        usage.fact_sql('daily' || level, p.right_from, least(p.right_to, last), p.right_sign, keys, bucket)), '');
end $$;

create function usage.expected_events(p usage.window_parts) returns double precision
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    last    constant date := usage.local_day(p.frontier, p.zone);
    seconds double precision;
begin
    select sum(extract(epoch from r.to_at) - extract(epoch from r.from_at))  -- of -infinity it is -infinity
      into seconds
      from (select x.from_at, least(x.to_at, now()) as to_at
              from unnest(array[p.head_from, p.foot_from, p.tail_from] || p.cut_from,
                          array[p.head_to, p.foot_to, coalesce(p.tail_to, 'infinity')] || p.cut_to) x (from_at, to_at)) r
     where r.from_at < r.to_at;
    if seconds = 'infinity' then
        return seconds;
    end if;
    return coalesce(seconds / 86400 * (select sum(t.event_count) from usage.daily_total t where t.day > last - 7 and t.day <= last), 0);
end $$;
comment on function usage.expected_events(usage.window_parts) is
'How many raw events a window may have to read if each day has as many as the week up to the frontier, which is rather too many; infinity if they are those of all times.';

-- What a window by collection and type consists of -------------------------------------------------------------------------

-- The metric expression has its home in usage.measured_text() and usage.well_formed_text(): whoever changes one of these makes
-- this function anew.
do $do$
declare
    value     constant text := 'r.detail -> (value_keys ->> r.resource_type)';
    secondary constant text := 'r.detail -> (secondary_keys ->> r.resource_type)';
    rolled    constant text := $sql$(
        select k.collection_id, k.resource_type, y.event_count, y.total_value, y.secondary_value
          from (select f.key_id, sum(f.event_count)::bigint as event_count, sum(f.total_value) as total_value,
                       sum(f.secondary_value) as secondary_value
                  from (select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from usage.quarterly_collection_fact f
                         where f.quarter >= quarters.quarter_from and f.quarter < quarters.quarter_to
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from usage.monthly_collection_fact f
                         where f.month >= p.month_from and f.month < quarters.quarter_from
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from usage.monthly_collection_fact f
                         where f.month >= quarters.quarter_to and f.month < p.month_to
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from usage.daily_collection_fact f
                         where f.day >= case when p.left_sign > 0 then p.left_from end and f.day < p.left_to
                        union all
                        select f.key_id, -f.event_count, -f.total_value, -f.secondary_value
                          from usage.daily_collection_fact f
                         where f.day >= case when p.left_sign < 0 then p.left_from end and f.day < p.left_to
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from usage.daily_collection_fact f
                         where f.day >= case when p.right_sign > 0 then p.right_from end and f.day < p.right_to
                        union all
                        select f.key_id, -f.event_count, -f.total_value, -f.secondary_value
                          from usage.daily_collection_fact f
                         where f.day >= case when p.right_sign < 0 then p.right_from end and f.day < p.right_to
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from unnest(p.hour_signs, p.hours_from, p.hours_to) h (sign, from_hour, to_hour),
                               lateral (select x.* from usage.hourly_collection_fact x
                                         where x.hour >= h.from_hour and x.hour < h.to_hour offset '0') f
                         where h.sign > 0
                        union all
                        select f.key_id, -f.event_count, -f.total_value, -f.secondary_value
                          from unnest(p.hour_signs, p.hours_from, p.hours_to) h (sign, from_hour, to_hour),
                               lateral (select x.* from usage.hourly_collection_fact x
                                         where x.hour >= h.from_hour and x.hour < h.to_hour offset '0') f
                         where h.sign < 0) f
                 group by f.key_id) y
          join usage.key k on k.id = y.key_id)$sql$;
    well_formed text;
    measured    text;
begin
    select string_agg(format($sql$
                union all
                select e.collection_id, e.resource_type, e.sign::bigint, e.value, e.secondary
                  from %s e$sql$,
               usage.well_formed_text(a.sign, null, value, secondary, format($sql$
                       select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail
                         from usage.event() e
                        where e.created_at >= %s and e.created_at < %s$sql$, a.sign, a.from_at, a.to_at))), '' order by a.n)
      into well_formed
      from (values (1, 1, 'plus_from[1]', 'plus_to[1]'), (2, 1, 'plus_from[2]', 'plus_to[2]'),
                   (3, -1, 'minus_from[1]', 'minus_to[1]'), (4, -1, 'minus_from[2]', 'minus_to[2]')) a (n, sign, from_at, to_at);
    -- The open tail has a bound nevertheless: without one the planner takes it for a third of all events.
    measured := usage.measured_text(value, secondary, $sql$
                       select c.sign, false as late, x.created_at, x.collection_id, x.resource_type, x.detail
                         from unnest(signs, starts, ends) c (sign, from_at, to_at),
                              lateral (select e.created_at, e.collection_id, e.resource_type, e.detail
                                         from usage.event() e
                                        where e.created_at >= c.from_at and e.created_at < c.to_at
                                       offset '0') x
                       union all
                       select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                         from usage.event() e
                        where e.created_at >= open_from and e.created_at <= 'infinity'
                       union all
                       select l.sign::integer, true, l.created_at, l.collection_id, l.resource_type, l.detail
                         from usage.late_change l
                        where l.created_at >= p.late_from and l.created_at < p.late_to
                          and not exists (select from unnest(p.gap_from, p.gap_to) g (from_at, to_at)
                                           where l.created_at >= g.from_at and l.created_at < g.to_at)$sql$);
    execute format($function$
create function usage.planned_by_collection(p usage.window_parts, value_keys jsonb, secondary_keys jsonb)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off set enable_sort = off
set plan_cache_mode = force_generic_plan set max_parallel_workers_per_gather = 0
as $$
#variable_conflict use_column
declare
    quarters   constant record := usage.whole_quarters(p);
    -- By min(), which goes by the index: for EXISTS the planner may read the table from its beginning.
    any_late   constant boolean := coalesce((select min(l.created_at) from usage.late_change l where l.created_at >= p.late_from) < p.late_to, false);
    open_from  constant timestamptz := case when p.tail_to is null then p.tail_from end;
    signs      integer[];      -- ranges of raw events, each with a sign, of which nothing is known
    starts     timestamptz[];
    ends       timestamptz[];
    -- And ranges with well formed events, to be added or taken off: two of each, as each has its branch, which costs a row less
    -- than a loop over ranges.
    plus_from  timestamptz[];
    plus_to    timestamptz[];
    minus_from timestamptz[];
    minus_to   timestamptz[];
begin
    select array_agg(r.from_at) filter (where r.sign > 0), array_agg(r.to_at) filter (where r.sign > 0),
           array_agg(r.from_at) filter (where r.sign < 0), array_agg(r.to_at) filter (where r.sign < 0),
           array_agg(r.sign), array_agg(r.from_at), array_agg(r.to_at)
      into plus_from, plus_to, minus_from, minus_to, signs, starts, ends
      from unnest(array[p.head_sign, p.foot_sign] || p.cut_signs, array[p.head_from, p.foot_from] || p.cut_from,
                  array[p.head_to, p.foot_to] || p.cut_to) r (sign, from_at, to_at)
     where r.from_at < r.to_at;
    if signs is not null then
        if coalesce(cardinality(plus_from), 0) <= 2 and coalesce(cardinality(minus_from), 0) <= 2 and usage.are_well_formed(starts, ends) then
            signs := null;
            starts := null;
            ends := null;
        else
            plus_from := null;
            minus_from := null;
        end if;
    end if;
    if p.tail_to is not null then
        signs := signs || 1;
        starts := starts || p.tail_from;
        ends := ends || p.tail_to;
    end if;
    if plus_from is null and minus_from is null and signs is null and open_from is null and not any_late then  -- grouped already
        return query
        select r.collection_id, c.title, r.resource_type::text, r.event_count,
               r.total_value::float8 as total_value, r.secondary_value::float8
          from %1$s r
          left join usage.collection() c on c.id = r.collection_id
         where r.event_count <> 0
         order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last;
    else
        return query
        select r.collection_id, c.title, r.resource_type::text, r.event_count,
               r.total_value::float8 as total_value, r.secondary_value::float8
          from (select k.collection_id, k.resource_type, sum(k.event_count)::bigint as event_count,
                       coalesce(sum(k.total_value), 0) as total_value, coalesce(sum(k.secondary_value), 0) as secondary_value
                  from (select k.*
                          from %1$s k%2$s
                        union all
                        select e.collection_id, e.resource_type, e.sign::bigint, usage.signed(e.sign, e.value), usage.signed(e.sign, e.secondary)
                          from %3$s e) k
                 group by k.collection_id, k.resource_type
                having sum(k.event_count) <> 0) r
          left join usage.collection() c on c.id = r.collection_id
         order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last;
    end if;
end $$$function$, rolled, well_formed, measured);
end $do$;
comment on function usage.planned_by_collection(usage.window_parts, jsonb, jsonb) is
'What usage.by_collection() says of a window of all collections, by one statement that a session plans once. value_keys, secondary_keys: as usage.planned_keys() gives them.';

-- Where it may be -------------------------------------------------------------------------------------------------------------

create function usage.planned_keys(of_one boolean, out value_keys jsonb, out secondary_keys jsonb)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- One definition of each metric, of all times; a table that is not distributed, nor partitioned, for a plan that is made
    -- once has all partitions; and the index.
    select jsonb_object_agg(m.resource_type, m.value_key), jsonb_object_agg(m.resource_type, m.secondary_key)
      into value_keys, secondary_keys
      from usage.metric m
     where not exists (select from usage.metric_history)
       and exists (select from pg_index i
                    where i.indrelid = (select s.source_oid from usage.state s where not s.distributed)
                      and i.indisvalid and i.indpred is null
                      and pg_relation_filenode(i.indexrelid) is not null
                      and pg_index_column_has_property(i.indexrelid, 1, 'orderable')
                      and case when of_one then pg_get_indexdef(i.indexrelid, 1, false) = 'collection_id'
                                            and pg_get_indexdef(i.indexrelid, 2, false) = 'created_at'
                               else pg_get_indexdef(i.indexrelid, 1, false) = 'created_at' end);
end $$;
comment on function usage.planned_keys(boolean) is
'Where the source lets windows of one, or of all collections be read by a statement that a session plans once: the keys of each resource type''s values, by name; else null.';

do $do$
declare
    patched record;
    text    text;
begin
    for patched in
        select *
          from (values ('usage.collection_rows(timestamptz, timestamptz, uuid, boolean)', $$
    -- One definition of each metric, of all times; a table that is not distributed, nor partitioned, for a plan that is made
    -- once has all partitions; and the index.
    select jsonb_object_agg(m.resource_type, m.value_key), jsonb_object_agg(m.resource_type, m.secondary_key)
      into value_keys, secondary_keys
      from usage.metric m
     where not exists (select from usage.metric_history)
       and exists (select from pg_index i
                    where i.indrelid = (select s.source_oid from usage.state s where not s.distributed)
                      and i.indisvalid and i.indpred is null
                      and pg_relation_filenode(i.indexrelid) is not null
                      and pg_index_column_has_property(i.indexrelid, 1, 'orderable')
                      and pg_get_indexdef(i.indexrelid, 1, false) = 'collection_id'
                      and pg_get_indexdef(i.indexrelid, 2, false) = 'created_at');
$$, $$
    select * into value_keys, secondary_keys from usage.planned_keys(true);
$$),
                       ('usage.by_collection(timestamptz, timestamptz, uuid)', $$
#variable_conflict use_column
begin
$$, $$
#variable_conflict use_column
declare
    value_keys     jsonb;
    secondary_keys jsonb;
    p              usage.window_parts;
begin
    if by_collection.collection is null then
        select * into value_keys, secondary_keys from usage.planned_keys(false);
        if value_keys is not null then
            p := usage.window_parts(by_collection.since, by_collection.until);
            if usage.expected_events(p) < 500000 then
                return query select r.* from usage.planned_by_collection(p, value_keys, secondary_keys) r;
                return;
            end if;
        end if;
    end if;
$$)) p (function, old, new)
    loop
        text := pg_get_functiondef(patched.function::regprocedure);
        if position(patched.old in text) = 0 then
            raise 'migration 0012 does not know this %', patched.function;
        end if;
        execute replace(text, patched.old, patched.new);
    end loop;
end $do$;

select usage.restore_grants();
