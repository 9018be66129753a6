-- Reads of events that are known to be well formed.

-- Measuring, in parts -----------------------------------------------------------------------------------------------------

create function usage.signed_events_sql(
    signs integer[], starts timestamptz[], ends timestamptz[], late_from timestamptz, late_to timestamptz, late_where text,
    collection uuid, resource_type text)
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    arms   text[] := '{}';
    of_one constant text := case when collection is null then '' else format(' and %%1$s.collection_id = %L::uuid', collection) end
                            || case when resource_type is null then '' else format(' and %%1$s.resource_type = %L collate "C"', resource_type) end;
begin
    for n in 1 .. cardinality(signs) loop
        if coalesce(starts[n] < ends[n], starts[n] is not null) and (cardinality(signs) <= 12 or ends[n] is null) then
            arms := arms || (format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                                    signs[n], usage.range_sql(starts[n], ends[n])) || format(of_one, 'e'));
        end if;
    end loop;
    if cardinality(signs) > 12 then  -- one by one by the index, all the same; the planner needs time for each arm
        arms := arms || format('select c.sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail'
                               ' from unnest(%L::integer[], %L::timestamptz[], %L::timestamptz[]) c (sign, from_at, to_at),'
                               ' lateral (select x.created_at, x.collection_id, x.resource_type, x.detail from usage.event() x'
                               ' where x.created_at >= c.from_at and x.created_at < c.to_at%s offset ''0'') e', signs, starts, ends, format(of_one, 'x'));
    end if;
    if late_from < late_to then
        arms := arms || (format('select l.sign::integer as sign, true as late, l.created_at, l.collection_id, l.resource_type, l.detail'
                                ' from usage.late_change l where l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz',
                                late_from, late_to)
                         || coalesce(' and ' || late_where, '') || format(of_one, 'l'));
    end if;
    if arms = '{}' then
        arms := array['select 1 as sign, false as late, null::timestamptz as created_at, null::uuid as collection_id,'
                      ' null::text as resource_type, null::jsonb as detail where false'];
    end if;
    return array_to_string(arms, ' union all ');
end $$;
comment on function usage.signed_events_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid, text) is
'A statement that reads the signed events of some ranges: ranges of raw events, each with a sign (end null: open; empty ones are left out), and one of late changes with a condition on l (null: none); of one collection or (null) all, and of one type or (null) all.';

create function usage.metric_sql(out value text, out secondary text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
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

    value := coalesce('case r.resource_type collate "C"' || value || ' end', 'null::jsonb');
    secondary := coalesce('case r.resource_type collate "C"' || secondary || ' end', 'null::jsonb');
end $$;
comment on function usage.metric_sql() is
'Two expressions that find the JSON values of an event r by the definitions of metrics.';

-- As before, of these two.
create or replace function usage.measured_sql(
    signs integer[], starts timestamptz[], ends timestamptz[], late_from timestamptz, late_to timestamptz, late_where text, collection uuid)
returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select usage.measured_text(m.value, m.secondary,
                               usage.signed_events_sql(signs, starts, ends, late_from, late_to, late_where, collection, null))
      from usage.metric_sql() m
$$;

-- Well formed -------------------------------------------------------------------------------------------------------------

-- What a fold found in an event it counted: where a day has no rejected value and no shortened type, each event of that day
-- that was folded is well formed, and one that was not waits as a late change. What capture does not see may be anything.
create function usage.are_well_formed(starts timestamptz[], ends timestamptz[]) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select s.capture_mode <> 'lookback'
       and not exists (select from unnest(starts, ends) r (from_at, to_at)
                        where (select min(l.created_at) from usage.late_change l where l.created_at >= r.from_at) < r.to_at
                           or exists (select from usage.daily_total t
                                       where t.day between usage.local_day(r.from_at, s.time_zone) and usage.local_day(r.to_at, s.time_zone)
                                         and (t.rejected_count <> 0 or octet_length(t.resource_type) > 128)))
      from usage.state s
$$;
comment on function usage.are_well_formed(timestamptz[], timestamptz[]) is
'Whether the events of some ranges below the frontier are known to have numbers within bounds and types of at most 128 bytes, from what their days'' totals say. No is not: they have not.';

-- A third less than usage.measured_text() takes: numbers are not compared with the bounds, and there is one fence. Yet it
-- tells types apart: should an event be there that somebody has taken the late change of, it fails for none that is no number.
create function usage.well_formed_text(sign integer, day date, value text, secondary text, events text) returns text
language sql stable
return format($sql$(
select r.sign, r.late, %5$L::date as day, r.collection_id, r.resource_type collate "C" as resource_type,
       usage.key_text(r.job_type) collate "C" as job_type,
       usage.key_text(r.model_level) collate "C" as model_level,
       %1$s case when jsonb_typeof(r.value) = 'number' then r.value::numeric
                 when r.value is not null then usage.in_bounds(usage.parsed_number(r.value)) end as value,
       %1$s case when jsonb_typeof(r.secondary) = 'number' then r.secondary::numeric
                 when r.secondary is not null then usage.in_bounds(usage.parsed_number(r.secondary)) end as secondary
  from (select r.sign, r.late, r.collection_id, r.resource_type,
               r.detail ->> 'job_type' as job_type, r.detail ->> 'model_level' as model_level,
               %2$s as value, %3$s as secondary
          from (%4$s) r
        offset '0') r)$sql$, case sign when -1 then '-' else '' end, value, secondary, events, day);
comment on function usage.well_formed_text(integer, date, text, text, text) is
'As usage.measured_text(), for well formed events of one sign and one day: values have the sign, and none is rejected.';

-- Values have their sign now. What is known of the raw events of edges, nobody knows of the tail and of late changes.
-- Statements to be joined where they are read: the planner does not flatten them under expressions, and each node costs a row 40 ns.
drop function usage.window_events_sql(usage.window_parts, uuid);
create function usage.window_events(p usage.window_parts, collection uuid, resource_type text) returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    -- By min(), which goes by the index: for EXISTS the planner may read the table from its beginning.
    any_late constant boolean := coalesce((select min(l.created_at) from usage.late_change l where l.created_at >= p.late_from) < p.late_to, false);
    signs    integer[];
    starts   timestamptz[];
    ends     timestamptz[];
    arms     text[];
    metric   record;
begin
    select array_agg(r.sign), array_agg(r.from_at), array_agg(r.to_at)
      into signs, starts, ends
      from unnest(array[p.head_sign, p.foot_sign] || p.cut_signs, array[p.head_from, p.foot_from] || p.cut_from,
                  array[p.head_to, p.foot_to] || p.cut_to) r (sign, from_at, to_at)
     where r.from_at < r.to_at;
    if signs is null and p.tail_from is null and not any_late then
        return null;
    end if;
    select * into metric from usage.metric_sql();
    if signs is not null and collection is null and usage.are_well_formed(starts, ends) then
        select array_agg(usage.well_formed_text(r.sign, r.day, metric.value, metric.secondary,
                                                usage.signed_events_sql(r.signs, r.starts, r.ends, null, null, null, null, resource_type)))
          into arms
          from (select r.sign, usage.local_day(r.from_at, p.zone) as day,  -- a range lies in one day
                       array_agg(r.sign) as signs, array_agg(r.from_at) as starts, array_agg(r.to_at) as ends
                  from unnest(signs, starts, ends) r (sign, from_at, to_at)
                 group by 1, 2) r;
        signs := null;
        starts := null;
        ends := null;
    end if;
    if signs is not null or p.tail_from is not null or any_late then
        arms := arms || format('(select m.sign, m.late, usage.local_day(m.created_at, %L) as day, m.collection_id, m.resource_type,'
                               ' m.job_type, m.model_level, %s as value, %s as secondary from %s m)',
            p.zone,
            case when any_late or -1 = any (signs) then 'usage.signed(m.sign, m.value)' else 'm.value' end,
            case when any_late or -1 = any (signs) then 'usage.signed(m.sign, m.secondary)' else 'm.secondary' end,
            usage.measured_text(metric.value, metric.secondary, usage.signed_events_sql(
                signs || 1, starts || p.tail_from, ends || p.tail_to,
                case when any_late then p.late_from end, case when any_late then p.late_to end,
                (select string_agg(format('not (l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz)', g.from_at, g.to_at), ' and ')
                   from unnest(p.gap_from, p.gap_to) g (from_at, to_at)),
                collection, resource_type)));
    end if;
    return arms;
end $$;
comment on function usage.window_events(usage.window_parts, uuid, text) is
'What to write in FROM, one or several, for the events of a window that are not in its whole days or hours, of one collection or (null) all, and of one type or (null) all, with their day and signed values; null: there are none to read.';

-- Buckets -------------------------------------------------------------------------------------------------------------------

-- As before, but without a column for the bucket where none is asked for (null): see usage.window_rows().
create or replace function usage.fact_sql(fact text, from_bucket date, to_bucket date, sign integer, keys integer[], bucket text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    of_months constant boolean := fact like 'monthly%';
    column_is constant text := case when of_months then 'month' else 'day' end;
    bucket_is constant text := coalesce(replace(bucket, '*', 'f.' || column_is) || ' as bucket, ', '');
    buckets   integer;
    sums      constant text := case when sign < 0 then '-f.event_count as event_count, -f.total_value as total_value, -f.secondary_value as secondary_value'
                                    else 'f.event_count, f.total_value, f.secondary_value' end;
begin
    if from_bucket is null or to_bucket is null or from_bucket >= to_bucket then
        return null;
    end if;
    if keys is not null and isfinite(from_bucket) and isfinite(to_bucket) and to_bucket - from_bucket < 40000 then
        buckets := case when of_months then (extract(year from to_bucket) - extract(year from from_bucket)) * 12
                                            + extract(month from to_bucket) - extract(month from from_bucket)
                        else to_bucket - from_bucket end;
        if buckets::bigint * cardinality(keys) <= 20000 then
            return format('select %sf.key_id, %s from generate_series(0, %s) b (n), usage.%I f where f.%I = %s and f.key_id = any (%L::integer[])',
                          bucket_is, sums, buckets - 1, fact, column_is,
                          case when of_months then format('(%L::timestamp + b.n * interval ''1 month'')::date', from_bucket)
                               else format('%L::date + b.n', from_bucket) end, keys);
        end if;
    end if;
    return format('select %sf.key_id, %s from usage.%I f where f.%I >= %L::date and f.%I < %L::date%s',
                  bucket_is, sums, fact, column_is, from_bucket, column_is, to_bucket,
                  case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end);
end $$;
comment on function usage.fact_sql(text, date, date, integer, integer[], text) is
'A statement that reads the rows of a rollup in [from_bucket, to_bucket), of some keys or (null) all, with a sign; null: there are none to read. bucket: an expression, with * for the row''s day or month; null: no column.';

create or replace function usage.hour_fact_sql(
    fact text, from_hour timestamptz, to_hour timestamptz, sign integer, keys integer[], bucket text, condition text)
returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    sums constant text := case when sign < 0 then '-f.event_count as event_count, -f.total_value as total_value, -f.secondary_value as secondary_value'
                               else 'f.event_count, f.total_value, f.secondary_value' end;
begin
    if coalesce(from_hour >= to_hour, true) then
        return null;
    end if;
    if extract(epoch from to_hour - from_hour) / 3600 * cardinality(keys) <= 20000 then
        return format('select %sf.key_id, %s from generate_series(0, %s) b (n), usage.%I f'
                      ' where f.hour = %L::timestamptz + b.n * interval ''1 hour'' and f.key_id = any (%L::integer[])',
                      coalesce(bucket || ' as bucket, ', ''), sums, (extract(epoch from to_hour - from_hour) / 3600)::bigint - 1, fact, from_hour, keys)
               || coalesce(' and ' || condition, '');
    end if;
    return format('select %sf.key_id, %s from usage.%I f where f.hour >= %L::timestamptz and f.hour < %L::timestamptz',
                  coalesce(bucket || ' as bucket, ', ''), sums, fact, from_hour, to_hour)
           || case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end
           || coalesce(' and ' || condition, '');
end $$;
comment on function usage.hour_fact_sql(text, timestamptz, timestamptz, integer, integer[], text, text) is
'A statement that reads the rows of an hourly rollup in [from_hour, to_hour), of some keys or (null) all, with a sign and a condition on f (null: none); null: there are none to read. bucket: an expression of f; null: no column.';

-- Readers ------------------------------------------------------------------------------------------------------------------

-- As before, but for values, which have their sign and may be null, and for keys, which are costly to compare and cheap to hash:
-- they are never sorted to be grouped, whatever the planner thinks of the room that they take.
create or replace function usage.window_rows(
    since timestamptz, until timestamptz, collection uuid, by_collection boolean, ai boolean, daily boolean, receipt boolean)
returns table (
    section text, day date, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint, total_value numeric, secondary_value numeric,
    rollup_rows bigint, raw_rows bigint, pending_changes bigint,
    frontier timestamptz, exact boolean, reasons text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_sort = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p        usage.window_parts := usage.window_parts(since, until);
    -- A condition on the type would be tested behind the fences, when values have been taken out of all events.
    events   text[] := usage.window_events(p, collection, case when ai and not by_collection and not daily then 'ai' end);
    days     constant text := case when by_collection or ai then usage.days_sql(p, ai, true, collection, null) end;
    hours    constant text := case when p.hour_signs is not null then usage.hours_sql(p, ai, collection, case when daily then '*' end) end;
    once     constant boolean := not receipt and by_collection::integer + ai::integer + daily::integer = 1;
    rolled   text;
    series   text;
    -- No column that is not asked for: the planner would take each row through a node that leaves it out.
    columns  constant text := case when ai then '*.collection_id, *.resource_type, *.job_type, *.model_level' else '*.collection_id, *.resource_type' end;
    of_event constant text := case when by_collection or ai then replace(columns, '*', 'e') else 'e.resource_type' end;
    of_keys  constant text := nullif(concat_ws(' union all ',
        case when days is not null or (hours is not null and (by_collection or ai)) then
            format('select %s, k.event_count, k.total_value, k.secondary_value from rollup k', replace(columns, '*', 'k')) end,
        case when events is not null then
            format('select %s, r.event_count, r.total_value, r.secondary_value from raw r', replace(columns, '*', 'r')) end), '');
    parts    text[] := '{}';
    sections text[] := '{}';
begin
    if events is not null then
        if not once and cardinality(events) > 1 then  -- grouped together
            events := array['(' || (select string_agg('select u.* from ' || u.events || ' u', ' union all ') from unnest(events) u (events)) || ')'];
        end if;
        parts := array_append(parts, 'raw as (' || (
            select string_agg(format($query$
        select %1$s, %3$s(e.sign)::bigint as event_count, %3$s(e.value) as total_value, %3$s(e.secondary) as secondary_value%4$s
          from %2$s e$query$,
            concat_ws(', ', case when daily then 'e.day' end, of_event),
            u.events,
            case when once then '' else 'sum' end,
            case when receipt then ', count(*) filter (where not e.late) as raw_rows, count(*) filter (where e.late) as late_rows' else '' end)
                || case when once then '' else ' group by ' || concat_ws(', ', case when daily then 'e.day' end, of_event) end, ' union all ')
              from unnest(events) u (events)) || ')');
    end if;
    rolled := nullif(concat_ws(' union all ', days, case when hours is not null and (by_collection or ai) then
        'select h.key_id, h.event_count, h.total_value, h.secondary_value from hours h' end), '');
    if hours is not null then
        parts := array_append(parts, format('hours as (%s)', hours));
    end if;
    if rolled is not null then
        parts := array_append(parts, format($query$rollup as (
        select %s, y.*
          from (select z.key_id, sum(z.event_count)::bigint as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value%s
                  from (%s) z
                 group by z.key_id) y
          join usage.key k on k.id = y.key_id)$query$,
            replace(columns, '*', 'k'), case when receipt then ', count(*) as rollup_rows' else '' end, rolled));
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
            'select r.day, r.resource_type, r.event_count, r.total_value, r.secondary_value, 0 from raw r' end,
            case when hours is not null then format(
                'select h.bucket, k.resource_type, h.event_count, h.total_value, h.secondary_value, %s'
                ' from (select x.bucket, x.key_id, sum(x.event_count) as event_count, sum(x.total_value) as total_value,'
                ' sum(x.secondary_value) as secondary_value, count(*) as rollup_rows from hours x group by 1, 2) h'
                ' join usage.key k on k.id = h.key_id', case when rolled is null then 'h.rollup_rows' else '0' end) end), '');
    end if;
    if series is not null then
        parts := array_append(parts, format($query$series (day, resource_type, event_count, total_value, secondary_value, rollup_rows) as (
        select z.day, z.resource_type, sum(z.event_count), coalesce(sum(z.total_value), 0), coalesce(sum(z.secondary_value), 0), sum(z.rollup_rows)
          from (%s) z (day, resource_type, event_count, total_value, secondary_value, rollup_rows)
         group by 1, 2)$query$, series));
        sections := array_append(sections, $query$
    select 'daily'::text, s.day, null::uuid, s.resource_type::text, null::text, null::text,
           s.event_count::bigint, s.total_value, s.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from series s
     where s.event_count <> 0$query$);
    end if;
    if by_collection and not ai and events is null and rolled is not null then  -- grouped already
        sections := array_append(sections, $query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           k.event_count::bigint, k.total_value, k.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from rollup k
     where k.event_count <> 0$query$);
    elsif of_keys is not null and by_collection then
        sections := array_append(sections, format($query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           sum(k.event_count)::bigint, coalesce(sum(k.total_value), 0), coalesce(sum(k.secondary_value), 0),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     group by k.collection_id, k.resource_type
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if of_keys is not null and ai then
        sections := array_append(sections, format($query$
    select 'ai_drilldown'::text, null::date, k.collection_id, k.resource_type::text, k.job_type::text, k.model_level::text,
           sum(k.event_count)::bigint, coalesce(sum(k.total_value), 0), coalesce(sum(k.secondary_value), 0),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     where k.resource_type = 'ai'
     group by k.collection_id, k.resource_type, k.job_type, k.model_level
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if receipt then
        sections := array_append(sections, format($query$
    select 'receipt'::text, null::date, null::uuid, null::text, null::text, null::text, null::bigint, null::numeric, null::numeric,
           %s, %s, $1, $2, $3$query$,
            concat_ws(' + ', '0::bigint',
                      case when rolled is not null then 'coalesce((select sum(k.rollup_rows) from rollup k), 0)::bigint' end,
                      case when series is not null then 'coalesce((select sum(s.rollup_rows) from series s), 0)::bigint' end),
            case when events is null then '0::bigint, 0::bigint'
                 else '(select coalesce(sum(r.raw_rows), 0)::bigint from raw r), (select coalesce(sum(r.late_rows), 0)::bigint from raw r)' end));
    end if;
    if sections <> '{}' then
        return query execute case when parts = '{}' then '' else 'with ' || array_to_string(parts, ', ') end
                             || array_to_string(sections, ' union all ')
        using p.frontier, p.exact, p.reasons;
    end if;
end $$;

-- Likewise.
create or replace function usage.window_sums(
    since timestamptz, until timestamptz, collection uuid,
    by_collection boolean, by_job_type boolean, by_model_level boolean, grain text)
returns table (bucket date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count numeric, total_value numeric, secondary_value numeric)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_sort = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    constant boolean := by_job_type or by_model_level;
    by_total  constant boolean := not by_key and not by_collection and collection is null;
    by_months constant boolean := grain in ('none', 'month') and not by_total;
    events    text[];
    days      text;
    hours     text;
    bucket_is constant text := case when grain = 'none' then 'null::date' else 'usage.bucket_of(*, $1)' end;
    parts     text[] := '{}';
begin
    events := usage.window_events(p, collection, null);
    if events is not null then
        parts := array(select format($query$
            select %s as bucket, %s as collection_id, e.resource_type, %s as job_type, %s as model_level, e.sign::bigint as event_count,
                   e.value as total_value, e.secondary as secondary_value
              from %s e$query$,
            case when grain <> 'none' then 'usage.bucket_of(e.day, $1)' else 'null::date' end,
            case when by_collection then 'e.collection_id' else 'null::uuid' end,
            case when by_job_type then 'e.job_type' else 'null::text' end,
            case when by_model_level then 'e.model_level' else 'null::text' end,
            u.events) from unnest(events) u (events));
    end if;
    if p.hour_signs is not null then
        hours := usage.hours_sql(p, by_key, collection, bucket_is);
    end if;
    if by_total then
        if p.day_from < p.day_to then
            parts := array_append(parts, format(
                'select usage.bucket_of(t.day, $1) as bucket, null::uuid as collection_id, t.resource_type, null::text as job_type,'
                ' null::text as model_level, t.event_count, t.total_value, t.secondary_value'
                ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to));
        end if;
    else
        days := usage.days_sql(p, by_key, by_months, collection, bucket_is);
    end if;
    days := nullif(concat_ws(' union all ', days, hours), '');
    if days is not null then
        parts := array_append(parts, format($query$
            select f.bucket, %s as collection_id, k.resource_type, %s as job_type, %s as model_level,
                   f.event_count, f.total_value, f.secondary_value
              from (select y.bucket, y.key_id, sum(y.event_count) as event_count, sum(y.total_value) as total_value,
                           sum(y.secondary_value) as secondary_value
                      from (%s) y
                     group by 1, 2) f
              join usage.key k on k.id = f.key_id$query$,
                case when by_collection then 'k.collection_id' else 'null::uuid' end,
                case when by_job_type then 'k.job_type' else 'null::text' end,
                case when by_model_level then 'k.model_level' else 'null::text' end, days));
    end if;
    if parts <> '{}' then
        return query execute format($query$
            select z.bucket, z.collection_id, z.resource_type::text, z.job_type::text, z.model_level::text,
                   sum(z.event_count)::numeric, coalesce(sum(z.total_value), 0), coalesce(sum(z.secondary_value), 0)
              from (%s) z
             group by 1, 2, 3, 4, 5
            having sum(z.event_count) <> 0$query$, array_to_string(parts, ' union all '))
        using grain;
    end if;
end $$;

select usage.restore_grants();
