-- Back to 0004: without the hourly rollup.

drop function usage.hourly_gain(integer, integer);
drop function usage.daily_series(timestamptz, timestamptz, uuid, text);
create or replace function usage.totals(
    since timestamptz, until timestamptz default null, by text[] default '{}', grain text default 'none',
    fill boolean default false, collection uuid default null)
returns table (bucket date, starts_at timestamptz, collection_id uuid, collection_title text, resource_type text,
               job_type text, model_level text, event_count bigint, total_value float8, secondary_value float8,
               unit text, secondary_unit text,
               event_count_before bigint, total_value_before float8, secondary_value_before float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off set datestyle = 'ISO, YMD'
as $$
#variable_conflict use_column
declare
    keys      constant text[] := array['collection', 'resource_type', 'job_type', 'model_level'];
    zone      constant text := (select s.time_zone from usage.state s);
    wrong     text;
    before    record;
    first_in  date;
    last_in   date;
    buckets   bigint;
begin
    select min(k) into wrong from unnest(by) k where k <> all (keys) or k is null;
    if wrong is not null or array_position(by, null) is not null then
        raise invalid_parameter_value using
            message = format('by: there is no key %s; there are %s', coalesce(quote_literal(wrong), 'NULL'), array_to_string(keys, ', '));
    elsif grain = 'hour' then
        raise invalid_parameter_value using message = 'grain: there is no hourly rollup; use day, week, month or none';
    elsif grain is null or grain not in ('none', 'day', 'week', 'month') then
        raise invalid_parameter_value using
            message = format('grain: there is no %s; there are day, week, month and none', coalesce(quote_literal(grain), 'NULL'));
    elsif since is null then
        raise invalid_parameter_value using message = 'since: must not be null; use -infinity for all there is';
    elsif since >= until then
        raise invalid_parameter_value using message = 'since must be before until';
    end if;
    fill := coalesce(fill, false);
    "by" := coalesce(by, '{}');
    select * into before from usage.window_before(since, coalesce(until, greatest(now(), since)), grain, zone);
    if fill and grain <> 'none' and isfinite(since) then
        first_in := usage.bucket_of(usage.local_day(since, zone), grain);
    end if;
    if fill and grain <> 'none' and isfinite(coalesce(until, now())) then
        last_in := usage.bucket_of(usage.local_day(coalesce(until - interval '1 microsecond', greatest(now(), since)), zone), grain);
    end if;
    if fill and last_in - first_in > 40000 then
        raise invalid_parameter_value using
            message = format('fill: that would be the days from %s to %s; ask for a shorter window', first_in, last_in);
    end if;

    return query
    with part as materialized (
        select w.bucket, w.collection_id, w.resource_type, w.job_type, w.model_level,
               w.event_count, w.total_value, w.secondary_value,
               0::numeric as event_count_before, 0::numeric as total_value_before, 0::numeric as secondary_value_before
          from usage.window_sums(since, until, collection, 'collection' = any (by), 'job_type' = any (by),
                                 'model_level' = any (by), grain) w
        union all
        select (w.bucket + before.shift)::date, w.collection_id, w.resource_type, w.job_type, w.model_level,
               0, 0, 0, w.event_count, w.total_value, w.secondary_value
          from usage.window_sums(before.since_before, since, collection, 'collection' = any (by), 'job_type' = any (by),
                                 'model_level' = any (by), grain) w
         where before.shift is not null
    ), held as (
        -- Where sealed days were added up by another definition: "characters / seconds", as the receipt says.
        select d.resource_type, string_agg(distinct d.unit, ' / ') as unit, string_agg(distinct d.secondary_unit, ' / ') as secondary_unit
          from usage.metric_definition d
         where (d.valid_to is null or d.valid_to > coalesce(before.since_before, since)) and (until is null or d.valid_from < until)
         group by d.resource_type
    ), typed as (
        select case when 'resource_type' = any (by) then p.resource_type end as resource_type, m.unit, m.secondary_unit, p.bucket,
               p.collection_id, p.job_type, p.model_level,
               p.event_count, p.total_value, p.secondary_value,
               p.event_count_before, p.total_value_before, p.secondary_value_before
          from part p
          left join held m on m.resource_type = p.resource_type collate "C"
    ), united as (
        -- The unit of a group, in this window and in the one before: sums of different units are none. A type without
        -- metric adds 0 to any.
        select t.bucket, t.collection_id, t.resource_type, t.job_type, t.model_level,
               sum(t.event_count)::bigint as event_count, sum(t.total_value) as total_value, sum(t.secondary_value) as secondary_value,
               sum(t.event_count_before)::bigint as event_count_before, sum(t.total_value_before) as total_value_before,
               sum(t.secondary_value_before) as secondary_value_before,
               array_agg(distinct t.unit) filter (where t.event_count <> 0 and t.unit is not null) as units,
               array_agg(distinct t.secondary_unit) filter (where t.event_count <> 0 and t.secondary_unit is not null) as secondary_units,
               array_agg(distinct t.unit) filter (where t.event_count_before <> 0 and t.unit is not null) as units_before,
               array_agg(distinct t.secondary_unit) filter (where t.event_count_before <> 0 and t.secondary_unit is not null)
                   as secondary_units_before
          from typed t
         group by 1, 2, 3, 4, 5
        having fill or sum(t.event_count) <> 0
    ), summed as materialized (
        select u.bucket, u.collection_id, u.resource_type, u.job_type, u.model_level, u.event_count,
               case when coalesce(cardinality(u.units), 0) < 2 then u.total_value end as total_value,
               case when coalesce(cardinality(u.secondary_units), 0) < 2 then u.secondary_value end as secondary_value,
               case when cardinality(coalesce(u.units, u.units_before)) = 1
                    then (coalesce(u.units, u.units_before))[1] end as unit,
               case when cardinality(coalesce(u.secondary_units, u.secondary_units_before)) = 1
                    then (coalesce(u.secondary_units, u.secondary_units_before))[1] end as secondary_unit,
               case when before.shift is not null then u.event_count_before end as event_count_before,
               case when before.shift is not null and coalesce(cardinality(u.units_before), 0) < 2
                     and (u.units is null or u.units_before is null or u.units = u.units_before)
                    then u.total_value_before end as total_value_before,
               case when before.shift is not null and coalesce(cardinality(u.secondary_units_before), 0) < 2
                     and (u.secondary_units is null or u.secondary_units_before is null or u.secondary_units = u.secondary_units_before)
                    then u.secondary_value_before end as secondary_value_before
          from united u
    ), filled as (
        select b.bucket, k.collection_id, k.resource_type, k.job_type, k.model_level, k.unit, k.secondary_unit
          from (select usage.bucket_of(d.day::date, grain) as bucket
                  from generate_series(coalesce(first_in, (select min(s.bucket) from summed s where isfinite(s.bucket)))::timestamp,
                                       coalesce(last_in, (select max(s.bucket) from summed s where isfinite(s.bucket)))::timestamp,
                                       case grain when 'month' then interval '1 month' when 'week' then interval '7 days'
                                                  else interval '1 day' end) d (day)
                 where fill and grain <> 'none') b,
               (select s.collection_id, s.resource_type, s.job_type, s.model_level, min(s.unit) as unit, min(s.secondary_unit) as secondary_unit
                  from summed s group by 1, 2, 3, 4
                union
                select null, null, null, null, null, null where by = '{}' and not exists (select from summed)) k
         where not exists (select from summed s
                            where s.bucket = b.bucket and s.collection_id is not distinct from k.collection_id
                              and s.resource_type is not distinct from k.resource_type
                              and s.job_type is not distinct from k.job_type and s.model_level is not distinct from k.model_level)
    ), whole as (
        select s.bucket, s.collection_id, s.resource_type, s.job_type, s.model_level, s.event_count, s.total_value, s.secondary_value,
               s.unit, s.secondary_unit, s.event_count_before, s.total_value_before, s.secondary_value_before
          from summed s
        union all
        select f.bucket, f.collection_id, f.resource_type, f.job_type, f.model_level, 0, 0, 0, f.unit, f.secondary_unit,
               case when before.shift is not null then 0 end, case when before.shift is not null then 0 end,
               case when before.shift is not null then 0 end
          from filled f
        union all  -- the sum of nothing, as in SQL
        select null, null, null, null, null, 0, 0, 0, null, null,
               case when before.shift is not null then 0 end, case when before.shift is not null then 0 end,
               case when before.shift is not null then 0 end
         where by = '{}' and grain = 'none' and not exists (select from summed)
    )
    select w.bucket, usage.day_label(w.bucket, zone), w.collection_id, c.title, w.resource_type::text, w.job_type::text, w.model_level::text,
           w.event_count, w.total_value::float8, w.secondary_value::float8, w.unit, w.secondary_unit,
           w.event_count_before, w.total_value_before::float8, w.secondary_value_before::float8
      from whole w
      left join usage.collection() c on c.id = w.collection_id
     order by w.bucket, w.total_value::float8 desc nulls last, case when w.total_value is null then w.event_count end desc,
              w.collection_id nulls last,
              w.resource_type collate "C" nulls last, w.job_type collate "C" nulls last, w.model_level collate "C" nulls last;
end $$;

create or replace function usage.window_sums(
    since timestamptz, until timestamptz, collection uuid,
    by_collection boolean, by_job_type boolean, by_model_level boolean, grain text)
returns table (bucket date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count numeric, total_value numeric, secondary_value numeric)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    constant boolean := by_job_type or by_model_level;
    by_total  constant boolean := not by_key and not by_collection and collection is null;
    by_months constant boolean := grain in ('none', 'month') and not by_total;
    events    text;
    days      text;
    parts     text[] := '{}';
begin
    events := usage.window_events_sql(p);
    if events is not null then
        parts := array_append(parts, format($query$
            select %s as bucket, %s as collection_id, e.resource_type, %s as job_type, %s as model_level, e.sign::bigint as event_count,
                   coalesce(usage.signed(e.sign, e.value), 0) as total_value,
                   coalesce(usage.signed(e.sign, e.secondary), 0) as secondary_value
              from %s e%s$query$,
            case when grain <> 'none' then 'usage.bucket_of(usage.local_day(e.created_at, $3), $2)' else 'null::date' end,
            case when by_collection then 'e.collection_id' else 'null::uuid' end,
            case when by_job_type then 'e.job_type' else 'null::text' end,
            case when by_model_level then 'e.model_level' else 'null::text' end,
            events, case when collection is not null then ' where e.collection_id = $1' else '' end));
    end if;
    if by_total then
        days := case when p.day_from < p.day_to then format(
            'select usage.bucket_of(t.day, $2) as bucket, null::uuid as collection_id, t.resource_type, null::text as job_type,'
            ' null::text as model_level, t.event_count, t.total_value, t.secondary_value'
            ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to) end;
    else
        days := usage.days_sql(p, by_key, by_months, collection,
                               case when grain = 'none' then 'null::date' else 'usage.bucket_of(*, $2)' end);
        days := case when days is not null then format($query$
            select f.bucket, %s as collection_id, k.resource_type, %s as job_type, %s as model_level,
                   f.event_count, f.total_value, f.secondary_value
              from (select y.bucket, y.key_id, sum(y.event_count) as event_count, sum(y.total_value) as total_value,
                           sum(y.secondary_value) as secondary_value
                      from (%s) y
                     group by 1, 2) f
              join usage.key k on k.id = f.key_id$query$,
                case when by_collection then 'k.collection_id' else 'null::uuid' end,
                case when by_job_type then 'k.job_type' else 'null::text' end,
                case when by_model_level then 'k.model_level' else 'null::text' end, days) end;
    end if;
    if days is not null then
        parts := array_append(parts, days);
    end if;
    if parts <> '{}' then
        return query execute format($query$
            select z.bucket, z.collection_id, z.resource_type::text, z.job_type::text, z.model_level::text,
                   sum(z.event_count)::numeric, sum(z.total_value), sum(z.secondary_value)
              from (%s) z
             group by 1, 2, 3, 4, 5
            having sum(z.event_count) <> 0$query$, array_to_string(parts, ' union all '))
        using collection, grain, p.zone;
    end if;
end $$;

create or replace function usage.window_rows(
    since timestamptz, until timestamptz, collection uuid, by_collection boolean, ai boolean, daily boolean, receipt boolean)
returns table (
    section text, day date, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint, total_value numeric, secondary_value numeric,
    rollup_rows bigint, raw_rows bigint, pending_changes bigint,
    frontier timestamptz, exact boolean, reasons text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p        usage.window_parts := usage.window_parts(since, until);
    events   constant text := usage.window_events_sql(p);
    days     constant text := case when by_collection or ai then usage.days_sql(p, ai, true, collection, 'null::date') end;
    series   text;
    of_keys  constant text := nullif(concat_ws(' union all ',
        case when days is not null then
            'select k.collection_id, k.resource_type, k.job_type, k.model_level, k.event_count, k.total_value, k.secondary_value from rollup k' end,
        case when events is not null then
            'select r.collection_id, r.resource_type, r.job_type, r.model_level, r.event_count, r.total_value, r.secondary_value from raw r' end), '');
    parts    text[] := '{}';
    sections text[] := '{}';
begin
    if events is not null then
        parts := array_append(parts, format($query$raw as (
        select %s as day, e.collection_id, e.resource_type, %s,
               sum(e.sign) as event_count,
               coalesce(sum(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0) as secondary_value,
               count(*) filter (where not e.late) as raw_rows,
               count(*) filter (where e.late) as late_rows
          from %s e
         where %s
         group by 1, 2, 3, 4, 5)$query$,
            case when daily then 'usage.local_day(e.created_at, $5)' else 'null::date' end,
            case when ai then 'e.job_type, e.model_level' else 'null::text as job_type, null::text as model_level' end,
            events,
            concat_ws(' and ', case when collection is null then 'true' else 'e.collection_id = $1' end,
                      case when not (by_collection or daily) then $query$e.resource_type = 'ai'$query$ end)));
    end if;
    if days is not null then
        parts := array_append(parts, format($query$rollup as (
        select k.collection_id, k.resource_type, k.job_type, k.model_level,
               y.event_count, y.total_value, y.secondary_value, y.rollup_rows
          from (select z.key_id, sum(z.event_count) as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value, count(*) as rollup_rows
                  from (%s) z
                 group by z.key_id) y
          join usage.key k on k.id = y.key_id)$query$, days));
    end if;
    if daily then
        if collection is not null then
            series := usage.days_sql(p, false, false, collection, '*');
            series := case when series is not null then
                format('select f.bucket as day, k.resource_type, f.event_count, f.total_value, f.secondary_value, 1 as rollup_rows'
                       ' from (%s) f join usage.key k on k.id = f.key_id', series) end;
        elsif p.day_from < p.day_to then
            series := format('select t.day, t.resource_type, t.event_count, t.total_value, t.secondary_value, 1 as rollup_rows'
                             ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to);
        end if;
        series := nullif(concat_ws(' union all ', series, case when events is not null then
            'select r.day, r.resource_type, r.event_count, r.total_value, r.secondary_value, 0 from raw r' end), '');
    end if;
    if series is not null then
        parts := array_append(parts, format($query$series (day, resource_type, event_count, total_value, secondary_value, rollup_rows) as (
        select z.day, z.resource_type, sum(z.event_count), sum(z.total_value), sum(z.secondary_value), sum(z.rollup_rows)
          from (%s) z (day, resource_type, event_count, total_value, secondary_value, rollup_rows)
         group by 1, 2)$query$, series));
        sections := array_append(sections, $query$
    select 'daily'::text, s.day, null::uuid, s.resource_type::text, null::text, null::text,
           s.event_count::bigint, s.total_value, s.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from series s
     where s.event_count <> 0$query$);
    end if;
    if by_collection and not ai and events is null and days is not null then  -- grouped already
        sections := array_append(sections, $query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           k.event_count::bigint, k.total_value, k.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from rollup k
     where k.event_count <> 0$query$);
    elsif of_keys is not null and by_collection then
        sections := array_append(sections, format($query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     group by k.collection_id, k.resource_type
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if of_keys is not null and ai then
        sections := array_append(sections, format($query$
    select 'ai_drilldown'::text, null::date, k.collection_id, k.resource_type::text, k.job_type::text, k.model_level::text,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     where k.resource_type = 'ai'
     group by k.collection_id, k.resource_type, k.job_type, k.model_level
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if receipt then
        sections := array_append(sections, format($query$
    select 'receipt'::text, null::date, null::uuid, null::text, null::text, null::text, null::bigint, null::numeric, null::numeric,
           %s, %s, $2, $3, $4$query$,
            concat_ws(' + ', '0::bigint',
                      case when days is not null then 'coalesce((select sum(k.rollup_rows) from rollup k), 0)::bigint' end,
                      case when series is not null then 'coalesce((select sum(s.rollup_rows) from series s), 0)::bigint' end),
            case when events is null then '0::bigint, 0::bigint'
                 else '(select coalesce(sum(r.raw_rows), 0)::bigint from raw r), (select coalesce(sum(r.late_rows), 0)::bigint from raw r)' end));
    end if;
    if sections <> '{}' then
        return query execute case when parts = '{}' then '' else 'with ' || array_to_string(parts, ', ') end
                             || array_to_string(sections, ' union all ')
        using collection, p.frontier, p.exact, p.reasons, p.zone;
    end if;
end $$;

create or replace function usage.window_events_sql(p usage.window_parts) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    any_late constant boolean := exists (select from usage.late_change l where l.created_at >= p.late_from and l.created_at < p.late_to);
begin
    if any_late or p.head_from < p.head_to or p.foot_from < p.foot_to or p.tail_from is not null then
        return usage.measured_sql(p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to, p.tail_from, p.tail_to,
                                  case when any_late then p.late_from end, case when any_late then p.late_to end, null);
    end if;
    return null;
end $$;

create or replace function usage.captured_window_parts(since timestamptz, until timestamptz) returns usage.window_parts
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

create or replace function usage.measured_sql(
    head_sign integer, head_from timestamptz, head_to timestamptz,
    foot_sign integer, foot_from timestamptz, foot_to timestamptz,
    tail_from timestamptz, tail_to timestamptz,
    late_from timestamptz, late_to timestamptz, late_sign integer)
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    arms       text[] := '{}';
    value      text;
    secondary  text;
begin
    if head_from < head_to then
        arms := arms || format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               head_sign, usage.range_sql(head_from, head_to));
    end if;
    if foot_from < foot_to then
        arms := arms || format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               foot_sign, usage.range_sql(foot_from, foot_to));
    end if;
    if tail_from is not null and coalesce(tail_from < tail_to, true) then
        arms := arms || format('select 1 as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               usage.range_sql(tail_from, tail_to));
    end if;
    if late_from < late_to then
        arms := arms || (format('select l.sign::integer as sign, true as late, l.created_at, l.collection_id, l.resource_type, l.detail'
                                ' from usage.late_change l where l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz',
                                late_from, late_to)
                         || case when late_sign is null then '' else format(' and l.sign = %s', late_sign) end);
    end if;
    if arms = '{}' then
        arms := array['select 1 as sign, false as late, null::timestamptz as created_at, null::uuid as collection_id,'
                      ' null::text as resource_type, null::jsonb as detail where false'];
    end if;

    -- "when type then value", of each type; where it has had several definitions, by the instant.
    select string_agg(format(' when %L then %s', m.resource_type, m.value), ''),
           string_agg(format(' when %L then %s', m.resource_type, m.secondary), '') filter (where m.any_secondary)
      into value, secondary
      from (select d.resource_type, bool_or(d.secondary_key is not null) as any_secondary,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.value_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.value_key), ''))
                   end as value,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.secondary_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.secondary_key), ''))
                   end as secondary
              from (select f.resource_type, f.value_key, f.secondary_key, f.valid_to,
                           format('>= %L::timestamptz', f.valid_from)
                           || case when f.valid_to is null then '' else format(' and r.created_at < %L::timestamptz', f.valid_to) end as span
                      from usage.metric_definition f) d
             group by d.resource_type) m;

    return format($sql$(
select n.sign, n.late, n.created_at, n.collection_id,
       usage.key_text(n.resource_type) collate "C" as resource_type,
       usage.key_text(n.job_type) collate "C" as job_type,
       usage.key_text(n.model_level) collate "C" as model_level,
       usage.in_bounds(n.value_number) as value,
       usage.in_bounds(n.secondary_number) as secondary,
       usage.is_rejected(n.value, usage.in_bounds(n.value_number))
           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number)) as rejected
  from (select j.*, usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number
          from (select r.sign, r.late, r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type, r.detail ->> 'model_level' as model_level,
                       %s as value, %s as secondary
                  from (%s) r
                offset '0') j
        offset '0') n)$sql$,
        coalesce('case r.resource_type collate "C"' || value || ' end', 'null::jsonb'),
        coalesce('case r.resource_type collate "C"' || secondary || ' end', 'null::jsonb'), array_to_string(arms, ' union all '));
end $$;
comment on function usage.measured_sql(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer) is
'What to write in FROM for the signed events of some ranges with their key and values: up to three ranges of raw events, each with a sign (null bounds: none; tail_to null: open), and one of late changes (late_sign null: both signs). The metric expression''s one home, for folds, reads and verify.';

create or replace function usage.analyze_changed() returns setof text
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
           and s.relname in ('daily_fact', 'daily_collection_fact', 'daily_total', 'monthly_fact', 'monthly_collection_fact', 'key', 'late_change',
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

drop function usage.hours_sql(usage.window_parts, boolean, uuid, text);
drop function usage.keys_of(uuid, boolean);
drop function usage.hour_fact_sql(text, timestamptz, timestamptz, integer, integer[], text, text);
drop function usage.with_hours(usage.window_parts, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz);
drop function usage.measured_ranges_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text);
drop function usage.is_of_hours(date, text, timestamptz);
alter type usage.window_parts drop attribute hour_signs, drop attribute hours_from, drop attribute hours_to,
    drop attribute cut_signs, drop attribute cut_from, drop attribute cut_to, drop attribute gap_from, drop attribute gap_to;
drop view usage.hourly, usage.hourly_collection;
drop table usage.hourly_fact, usage.hourly_collection_fact;
alter table usage.state drop constraint state_hourly_since;
alter table usage.state drop column hourly_since;
drop function usage.hours_from(timestamptz);
drop function usage.hours_to(timestamptz);
drop function usage.hour_of(timestamptz);

-- What was repaired in a table that is no more.
delete from usage.restatement where rollup in ('hourly', 'hourly_collection');
alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup
    check (rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'daily_total'));
comment on column usage.restatement.bucket is 'The day (or the month''s first day) that was changed.';

select usage.restore_grants();
