-- Reading: statements made for what is asked, and the parts that they are made of.

-- Events --------------------------------------------------------------------------------------------------------------

-- So that parallel workers may run what they are inlined into.
alter function usage.event() parallel safe;
alter function usage.collection() parallel safe;

create function usage.range_sql(since timestamptz, until timestamptz) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
    if (select s.distributed from usage.state s) then
        return format('usage.event_between(%L::timestamptz, %L::timestamptz) e where true', since, until);
    end if;
    return format('usage.event() e where e.created_at >= %L::timestamptz', since)
        || case when until is null then '' else format(' and e.created_at < %L::timestamptz', until) end;
end $$;
comment on function usage.range_sql(timestamptz, timestamptz) is
'What to write behind FROM for the events e of [since, until), until null: open; conditions may follow.';

-- Text, for the values are made for the definitions of metrics that the snapshot has: a CASE costs less than a join, and
-- what is not asked for is not in the statement at all, so it costs no planning, and parallel workers may run it. Both
-- OFFSETs are fences: without them each expression below would be worked out anew wherever it is used. In quotes: a number
-- is cast to bigint, and the planner takes a cast for a limit that forbids parallel workers.
create function usage.measured_sql(
    signs integer[], starts timestamptz[], ends timestamptz[], late_from timestamptz, late_to timestamptz, late_where text, collection uuid)
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    arms       text[] := '{}';
    value      text;
    secondary  text;
    of_one     constant text := case when collection is null then '' else format(' and %%s.collection_id = %L::uuid', collection) end;
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
comment on function usage.measured_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid) is
'What to write in FROM for the signed events of some ranges with their key and values: ranges of raw events, each with a sign (end null: open; empty ones are left out), and one of late changes with a condition on l (null: none); of one collection or (null) all. The metric expression''s one home, for folds, reads and verify.';

create or replace function usage.pending_sums()
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off
as $$
declare
    top  timestamptz := usage.effective_frontier();
    zone text := (select s.time_zone from usage.state s);
begin
    return query execute format($query$
        select usage.local_day(e.created_at, $1), e.collection_id, e.resource_type, e.job_type, e.model_level,
               sum(e.sign)::bigint,
               coalesce(sum(usage.signed(e.sign, e.value)), 0),
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
               coalesce(sum(e.sign) filter (where e.rejected), 0)::bigint
          from %s e
         group by 1, 2, 3, 4, 5
    $query$, usage.measured_sql(array[1], array[top], array[null]::timestamptz[], '-infinity', top, null, null))
    using zone;
end $$;

drop function usage.measured(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer);

-- The window and its parts ------------------------------------------------------------------------------------------------

alter type usage.window_parts add attribute hour_signs integer[];     -- hours added, or taken off their day: sign, and [from, to)
alter type usage.window_parts add attribute hours_from timestamptz[];
alter type usage.window_parts add attribute hours_to   timestamptz[];
alter type usage.window_parts add attribute cut_signs  integer[];     -- raw parts of hours that the window or a midnight cuts, likewise
alter type usage.window_parts add attribute cut_from   timestamptz[];
alter type usage.window_parts add attribute cut_to     timestamptz[];
alter type usage.window_parts add attribute gap_from   timestamptz[]; -- within [late_from, late_to): not of whole days or hours
alter type usage.window_parts add attribute gap_to     timestamptz[];

create function usage.with_hours(
    p usage.window_parts, sign integer, from_at timestamptz, to_at timestamptz,
    day_from timestamptz, day_to timestamptz, low timestamptz, top timestamptz)
returns usage.window_parts
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    -- The nearer whole hour, as long as it lies in the same day.
    first  timestamptz := usage.hours_from(from_at);
    last   timestamptz := usage.hours_to(to_at);
begin
    if not (isfinite(from_at) and isfinite(to_at)) then
        return p;
    end if;
    if usage.hours_to(from_at) >= day_from and from_at - usage.hours_to(from_at) < first - from_at then
        first := usage.hours_to(from_at);
    end if;
    if to_at >= top or (usage.hours_from(to_at) <= day_to and usage.hours_from(to_at) - to_at < to_at - last) then
        last := usage.hours_from(to_at);
    end if;
    first := greatest(first, low);
    if first < last then
        p.hour_signs := p.hour_signs || sign;
        p.hours_from := p.hours_from || first;
        p.hours_to := p.hours_to || last;
        last := least(last, top);
        if first <> from_at then
            p.cut_signs := p.cut_signs || case when first > from_at then sign else -sign end;
            p.cut_from := p.cut_from || least(first, from_at);
            p.cut_to := p.cut_to || greatest(first, from_at);
        end if;
        if last <> to_at then
            p.cut_signs := p.cut_signs || case when last < to_at then sign else -sign end;
            p.cut_from := p.cut_from || least(last, to_at);
            p.cut_to := p.cut_to || greatest(last, to_at);
        end if;
    end if;
    return p;
end $$;
comment on function usage.with_hours(usage.window_parts, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz) is
'The parts of a window with [from_at, to_at), a part of the day [day_from, day_to), by hours from low on: cut from the nearer side, so at most half an hour is raw at either end (more where a midnight is no whole hour). As they were if there is no whole hour. Below top all hours are folded.';

create function usage.is_of_hours(day date, zone text, low timestamptz) returns boolean
language sql immutable parallel safe
return usage.day_start(day, zone) >= low
   and usage.hour_of(usage.day_start(day, zone)) = usage.day_start(day, zone)
   and usage.hour_of(usage.day_start(usage.next_day(day), zone)) = usage.day_start(usage.next_day(day), zone);
comment on function usage.is_of_hours(date, text, timestamptz) is
'Whether a local day begins and ends with a whole UTC hour, none of them below one; null near the ends of years 1-9999.';

-- What usage.window_parts() was. With the hourly rollup the part of an edge day is cut again, at hours, by the same rule.
create function usage.cut_window(since timestamptz, until timestamptz) returns usage.window_parts
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
    hours_low   timestamptz;   -- from here on there are hours; null: there are none
    days_start  timestamptz;   -- late changes count in [days_start, days_end), and in
    days_end    timestamptz;
    spans_from  timestamptz[] := '{}';  -- [spans_from, spans_to), which are in order
    spans_to    timestamptz[] := '{}';
    after_from  timestamptz;   -- and in these
    after_to    timestamptz;
    last_hour   timestamptz;
    since_sealed boolean;      -- the window begins, or ends, where no raw event may be there to cut a day by
    until_sealed boolean;
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

    since_sealed := since < s.sealed_until;
    until_sealed := until < s.sealed_until;
    if s.hourly_since is not null then
        hours_low := usage.hours_from(s.hourly_since);
        -- Below the seal by hours, if its day is one of whole hours: an hour that is cut counts whole.
        if since < s.sealed_until and usage.is_of_hours(usage.local_day(since, s.time_zone), s.time_zone, hours_low) then
            if usage.hours_to(since) < since then
                p.exact := false;
                p.reasons := p.reasons || format('the window starts inside the hour of %s, which is sealed: that hour counts whole', usage.hours_to(since));
                since := usage.hours_to(since);
            end if;
            since_sealed := false;
        end if;
        if until < s.sealed_until and usage.is_of_hours(usage.local_day(until, s.time_zone), s.time_zone, hours_low) then
            if usage.hours_to(until) < until then
                p.exact := false;
                p.reasons := p.reasons || format('the window ends inside the hour of %s, which is sealed: that hour counts whole', usage.hours_to(until));
                until := usage.hours_from(until);
            end if;
            until_sealed := false;
        end if;
    end if;

    -- left edge
    d := usage.local_day(since, s.time_zone);
    first_at := usage.day_start(d, s.time_zone);
    next_at := usage.day_start(usage.next_day(d), s.time_zone);
    if since_sealed and since > first_at then
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
        if hours_low is not null then
            p := usage.with_hours(p, 1, since, until, first_at, next_at, hours_low, top);
            if p.hours_from is not null then
                p.head_from := null;
                p.late_from := p.hours_from[1];
                p.late_to := least(p.hours_to[1], top);
            end if;
        end if;
        return p;
    elsif isfinite(d) and since - first_at < least(next_at, bound) - since then
        p.head_sign := -1;
        p.head_from := first_at;
        p.head_to := since;
        p.day_from := d;
        if hours_low is not null then
            p := usage.with_hours(p, -1, first_at, since, first_at, next_at, hours_low, top);
            if p.hours_from is not null then
                p.head_from := null;
                days_start := least(p.hours_to[1], top);
                if first_at < p.hours_from[1] then
                    spans_from := array[first_at];
                    spans_to := array[p.hours_from[1]];
                end if;
            end if;
        end if;
    else
        p.head_sign := 1;
        p.head_from := since;
        p.head_to := least(next_at, bound);
        p.day_from := usage.next_day(d);
        if hours_low is not null then
            p := usage.with_hours(p, 1, since, p.head_to, first_at, next_at, hours_low, top);
            if p.hours_from is not null then
                p.head_from := null;
                spans_from := array[p.hours_from[1]];
                spans_to := array[least(p.hours_to[1], top)];
            end if;
        end if;
    end if;

    -- right edge
    if until is null or until >= top then
        p.day_to := case when doubt is null then 'infinity' else last_day end;
    else
        d := usage.local_day(until, s.time_zone);
        first_at := usage.day_start(d, s.time_zone);
        next_at := least(usage.day_start(usage.next_day(d), s.time_zone), top);
        if until_sealed and until > first_at then
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
            if hours_low is not null then
                p := usage.with_hours(p, -1, until, next_at, first_at, next_at, hours_low, top);
                if p.hours_from[cardinality(p.hours_from)] >= first_at then
                    p.foot_from := null;
                    days_end := p.hours_from[cardinality(p.hours_from)];
                    last_hour := least(p.hours_to[cardinality(p.hours_to)], top);
                    if last_hour < next_at then
                        after_from := last_hour;
                        after_to := next_at;
                    end if;
                end if;
            end if;
        else
            p.foot_sign := 1;
            p.foot_from := first_at;
            p.foot_to := until;
            p.day_to := d;
            if hours_low is not null then
                p := usage.with_hours(p, 1, first_at, until, first_at, next_at, hours_low, top);
                if p.hours_from[cardinality(p.hours_from)] >= first_at then
                    p.foot_from := null;
                    after_from := p.hours_from[cardinality(p.hours_from)];
                    after_to := least(p.hours_to[cardinality(p.hours_to)], top);
                end if;
            end if;
        end if;
    end if;

    -- late changes, where days or hours count
    if p.day_from < p.day_to then
        days_start := coalesce(days_start, usage.day_start(p.day_from, s.time_zone));
        days_end := least(coalesce(days_end, usage.day_start(p.day_to, s.time_zone)), top);
        if days_start < days_end then
            spans_from := spans_from || days_start;
            spans_to := spans_to || days_end;
        end if;
    end if;
    if after_from < after_to then
        spans_from := spans_from || after_from;
        spans_to := spans_to || after_to;
    end if;
    p.late_from := spans_from[1];
    p.late_to := spans_to[cardinality(spans_to)];
    for n in 2 .. cardinality(spans_from) loop
        if spans_to[n - 1] < spans_from[n] then
            p.gap_from := p.gap_from || spans_to[n - 1];
            p.gap_to := p.gap_to || spans_from[n];
        end if;
    end loop;
    if p.day_from >= p.day_to then
        p.day_from := null;
        p.day_to := null;
        return p;
    end if;

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
comment on function usage.cut_window(timestamptz, timestamptz) is
'How a window is put together, if capture misses nothing: usage.window_parts() says whether it may.';

create function usage.lookback_reason(first_day date) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select format('capture is lookback: a late change of the last %s appears at the next refresh, an older one at aggregator verify --repair',
                  case s.lookback_days when 1 then 'day' else s.lookback_days || ' days' end)
      from usage.state s
     where s.capture_mode = 'lookback' and first_day is not null
$$;
comment on function usage.lookback_reason(date) is
'Why an answer that takes days from the rollups, from this one on (null: none), may miss late changes; null if it cannot.';

create or replace function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    p      usage.window_parts := usage.cut_window(since, until);
    reason text := usage.lookback_reason(p.day_from);
begin
    if reason is not null then
        p.exact := false;
        p.reasons := p.reasons || reason;
    end if;
    return p;
end $$;

-- Rollups -----------------------------------------------------------------------------------------------------------------

create function usage.keys_of(collection uuid, by_key boolean) returns integer[]
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select case when collection is not null
                then array(select distinct case when by_key then k.id else k.collection_key end from usage.key k where k.collection_id = collection) end
$$;
comment on function usage.keys_of(uuid, boolean) is
'The numbers of a collection''s keys, or of those without job type and model level; null: all collections.';

-- One collection is looked up bucket by bucket, for the index leads with the bucket; where there are too many buckets or
-- keys for that to pay, or end buckets that cannot be counted, the range is read and the keys are picked out.
create function usage.fact_sql(fact text, from_bucket date, to_bucket date, sign integer, keys integer[], bucket text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    of_months constant boolean := fact like 'monthly%';
    column_is constant text := case when of_months then 'month' else 'day' end;
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
            return format('select %s as bucket, f.key_id, %s from generate_series(0, %s) b (n), usage.%I f where f.%I = %s and f.key_id = any (%L::integer[])',
                          replace(bucket, '*', 'f.' || column_is), sums, buckets - 1, fact, column_is,
                          case when of_months then format('(%L::timestamp + b.n * interval ''1 month'')::date', from_bucket)
                               else format('%L::date + b.n', from_bucket) end, keys);
        end if;
    end if;
    return format('select %s as bucket, f.key_id, %s from usage.%I f where f.%I >= %L::date and f.%I < %L::date%s',
                  replace(bucket, '*', 'f.' || column_is), sums, fact, column_is, from_bucket, column_is, to_bucket,
                  case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end);
end $$;
comment on function usage.fact_sql(text, date, date, integer, integer[], text) is
'A statement that reads the rows of a rollup in [from_bucket, to_bucket), of some keys or (null) all, with a sign; null: there are none to read. bucket: an expression, with * for the row''s day or month.';

create function usage.hour_fact_sql(
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
        return format('select %s as bucket, f.key_id, %s from generate_series(0, %s) b (n), usage.%I f'
                      ' where f.hour = %L::timestamptz + b.n * interval ''1 hour'' and f.key_id = any (%L::integer[])',
                      bucket, sums, (extract(epoch from to_hour - from_hour) / 3600)::bigint - 1, fact, from_hour, keys)
               || coalesce(' and ' || condition, '');
    end if;
    return format('select %s as bucket, f.key_id, %s from usage.%I f where f.hour >= %L::timestamptz and f.hour < %L::timestamptz',
                  bucket, sums, fact, from_hour, to_hour)
           || case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end
           || coalesce(' and ' || condition, '');
end $$;
comment on function usage.hour_fact_sql(text, timestamptz, timestamptz, integer, integer[], text, text) is
'A statement that reads the rows of an hourly rollup in [from_hour, to_hour), of some keys or (null) all, with a sign and a condition on f (null: none); null: there are none to read. bucket: an expression of f.';

-- Late changes are looked for first: mostly there is none, and without them whole days need no events at all.
create function usage.window_events_sql(p usage.window_parts, collection uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    any_late constant boolean := exists (select from usage.late_change l where l.created_at >= p.late_from and l.created_at < p.late_to);
begin
    if any_late or cardinality(p.cut_signs) > 0 or p.head_from < p.head_to or p.foot_from < p.foot_to or p.tail_from is not null then
        return usage.measured_sql(
            array[p.head_sign, p.foot_sign, 1] || p.cut_signs,
            array[case when p.head_from < p.head_to then p.head_from end, case when p.foot_from < p.foot_to then p.foot_from end, p.tail_from] || p.cut_from,
            array[p.head_to, p.foot_to, p.tail_to] || p.cut_to,
            case when any_late then p.late_from end, case when any_late then p.late_to end,
            (select string_agg(format('not (l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz)', g.from_at, g.to_at), ' and ')
               from unnest(p.gap_from, p.gap_to) g (from_at, to_at)),
            collection);
    end if;
    return null;
end $$;
comment on function usage.window_events_sql(usage.window_parts, uuid) is
'What to write in FROM for the events of a window that are not in its whole days or hours, of one collection or (null) all; null: there are none to read.';

create function usage.days_sql(p usage.window_parts, by_key boolean, by_months boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    level constant text := case when by_key then '_fact' else '_collection_fact' end;
    keys  constant integer[] := usage.keys_of(collection, by_key);
    -- No rollup row lies past the frontier's day.
    last  constant date := usage.next_day(usage.local_day(p.frontier, p.zone));
begin
    return case
        when by_months then nullif(concat_ws(' union all ',
            usage.fact_sql('monthly' || level, p.month_from, least(p.month_to, usage.next_month(usage.month_of(last))), 1, keys, bucket),
            usage.fact_sql('daily' || level, p.left_from, least(p.left_to, last), p.left_sign, keys, bucket),
            usage.fact_sql('daily' || level, p.right_from, least(p.right_to, last), p.right_sign, keys, bucket)), '')
        else usage.fact_sql('daily' || level, p.day_from, least(p.day_to, last), 1, keys, bucket) end;
end $$;
comment on function usage.days_sql(usage.window_parts, boolean, boolean, uuid, text) is
'A statement that reads the whole days of a window from the rollups: by key or by collection and type, through months where they may be used or day by day, of one collection or (null) all; null: there are none.';

create function usage.hours_sql(p usage.window_parts, by_key boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    keys integer[];
begin
    if p.hour_signs is null then
        return null;
    end if;
    keys := usage.keys_of(collection, by_key);
    return (select string_agg(usage.hour_fact_sql(case when by_key then 'hourly_fact' else 'hourly_collection_fact' end,
                                                  h.from_hour, h.to_hour, h.sign, keys,
                                                  -- a range lies in one day
                                                  replace(bucket, '*', format('%L::date', usage.local_day(h.from_hour, p.zone))), null),
                              ' union all ')
              from unnest(p.hour_signs, p.hours_from, p.hours_to) h (sign, from_hour, to_hour));
end $$;
comment on function usage.hours_sql(usage.window_parts, boolean, uuid, text) is
'A statement that reads the hours of a window from the hourly rollup: by key or by collection and type, of one collection or (null) all; null: there are none. bucket: as in usage.fact_sql(), of the day that the hours lie in.';

-- Answers -----------------------------------------------------------------------------------------------------------------

-- The one reader: every section of every answer comes from this statement. It holds what the window needs and no more:
-- planning takes longer than reading a small window. Starting parallel workers takes longer than reading rollups; it pays
-- where all there is has to be read raw: hence the setup cost, about a second's work.
drop function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean);
create function usage.window_rows(
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
    events   constant text := usage.window_events_sql(p, collection);
    days     constant text := case when by_collection or ai then usage.days_sql(p, ai, true, collection, 'null::date') end;
    hours    constant text := case when p.hour_signs is not null then usage.hours_sql(p, ai, collection, case when daily then '*' else 'null::date' end) end;
    rolled   text;
    series   text;
    of_keys  constant text := nullif(concat_ws(' union all ',
        case when days is not null or (hours is not null and (by_collection or ai)) then
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
            case when daily then 'usage.local_day(e.created_at, $4)' else 'null::date' end,
            case when ai then 'e.job_type, e.model_level' else 'null::text as job_type, null::text as model_level' end,
            events,
            case when by_collection or daily then 'true' else $query$e.resource_type = 'ai'$query$ end));
    end if;
    rolled := nullif(concat_ws(' union all ', days, case when hours is not null and (by_collection or ai) then
        'select h.bucket, h.key_id, h.event_count, h.total_value, h.secondary_value from hours h' end), '');
    if hours is not null then
        parts := array_append(parts, format('hours as (%s)', hours));
    end if;
    if rolled is not null then
        parts := array_append(parts, format($query$rollup as (
        select k.collection_id, k.resource_type, k.job_type, k.model_level,
               y.event_count, y.total_value, y.secondary_value, y.rollup_rows
          from (select z.key_id, sum(z.event_count) as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value, count(*) as rollup_rows
                  from (%s) z
                 group by z.key_id) y
          join usage.key k on k.id = y.key_id)$query$, rolled));
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
        using p.frontier, p.exact, p.reasons, p.zone;
    end if;
end $$;
comment on function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean) is
'Sums of the window [since, until), of one collection or (null) all, for the sections asked for, and the receipt of that read.';

-- The same parts, for any keys and one grain. Days are taken from the coarsest rollup that has the keys, months only where
-- no bucket cuts them. The resource type is a key always: units do not add up.
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
    hours     text;
    bucket_is constant text := case when grain = 'none' then 'null::date' else 'usage.bucket_of(*, $1)' end;
    parts     text[] := '{}';
begin
    events := usage.window_events_sql(p, collection);
    if events is not null then
        parts := array_append(parts, format($query$
            select %s as bucket, %s as collection_id, e.resource_type, %s as job_type, %s as model_level, e.sign::bigint as event_count,
                   coalesce(usage.signed(e.sign, e.value), 0) as total_value,
                   coalesce(usage.signed(e.sign, e.secondary), 0) as secondary_value
              from %s e$query$,
            case when grain <> 'none' then 'usage.bucket_of(usage.local_day(e.created_at, $2), $1)' else 'null::date' end,
            case when by_collection then 'e.collection_id' else 'null::uuid' end,
            case when by_job_type then 'e.job_type' else 'null::text' end,
            case when by_model_level then 'e.model_level' else 'null::text' end,
            events));
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
                   sum(z.event_count)::numeric, sum(z.total_value), sum(z.secondary_value)
              from (%s) z
             group by 1, 2, 3, 4, 5
            having sum(z.event_count) <> 0$query$, array_to_string(parts, ' union all '))
        using grain, p.zone;
    end if;
end $$;

-- The sections' functions, as before: without a receipt, which none of them shows.

create or replace function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.resource_type, r.event_count,
           r.total_value::float8 as total_value, r.secondary_value::float8
      from usage.window_rows(since, until, collection, true, false, false, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'by_collection'
     order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last
$$;

create or replace function usage.ai_drilldown(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, job_type text, model_level text,
               tokens_in numeric, tokens_out numeric, event_count bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.job_type, r.model_level,
           round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
      from usage.window_rows(since, until, collection, false, true, false, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'ai_drilldown'
     order by tokens_in desc, r.collection_id nulls last,
              r.job_type collate "C" nulls last, r.model_level collate "C" nulls last
$$;

create or replace function usage.daily_series(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.day, usage.day_label(r.day, (select s.time_zone from usage.state s)), r.resource_type, r.event_count,
           r.total_value::float8
      from usage.window_rows(since, until, collection, false, false, true, false) r
     where r.section = 'daily'
     order by r.day desc, r.resource_type collate "C" nulls last
$$;

create or replace function usage.receipt(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (as_of timestamptz, frontier timestamptz, lag interval, exact boolean, reasons text[],
               rollup_rows bigint, raw_rows bigint, pending_changes bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select now(), r.frontier, case when isfinite(r.frontier) then now() - r.frontier end, r.exact, r.reasons,
           r.rollup_rows, r.raw_rows, r.pending_changes
      from usage.window_rows(since, until, collection, true, true, true, true) r
     where r.section = 'receipt'
$$;

create or replace function usage.overview_rows(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (section text, ordinal bigint, day date, starts_at timestamptz, collection_id uuid, collection_title text,
               resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric,
               as_of timestamptz, frontier timestamptz, exact boolean, reasons text[],
               rollup_rows bigint, raw_rows bigint, pending_changes bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.section,
           row_number() over (partition by r.section order by
               r.day desc,
               case when r.section = 'by_collection' then r.total_value::float8 end desc,
               case when r.section = 'ai_drilldown' then round(r.total_value) end desc,
               r.collection_id nulls last, r.resource_type collate "C" nulls last,
               r.job_type collate "C" nulls last, r.model_level collate "C" nulls last),
           r.day, usage.day_label(r.day, (select s.time_zone from usage.state s)),
           r.collection_id, c.title, r.resource_type, r.job_type, r.model_level,
           r.event_count, r.total_value, r.secondary_value,
           now(), r.frontier, r.exact, r.reasons, r.rollup_rows, r.raw_rows, r.pending_changes
      from usage.window_rows(since, until, collection, true, true, true, true) r
      left join usage.collection() c on c.id = r.collection_id
     order by 1, 2
$$;

-- Days of another time zone ------------------------------------------------------------------------------------------------

-- An hour lies in one local day, or is cut by a midnight, and then read raw. So are the three hours before a midnight near
-- which the clock was changed: some zones set it back past midnight. Before 1900 zones were off by any number of seconds.
create function usage.daily_series(since timestamptz, until timestamptz, collection uuid, time_zone text)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
#variable_conflict use_column
declare
    s           usage.state;
    zone        constant text := daily_series.time_zone;
    top         timestamptz;   -- rollups are read below this instant, raw events from it on
    bound       timestamptz;
    first_hour  timestamptz;   -- hours are read in [first_hour, last_hour), save those that are cut; null: none is
    last_hour   timestamptz;
    first_row   timestamptz;   -- there is none before
    raw_from    timestamptz[] := '{}';
    raw_to      timestamptz[] := '{}';
    cuts_from   timestamptz[];
    cuts_to     timestamptz[];
    cut_hours   timestamptz[];
    hours       text;
begin
    select * into strict s from usage.state;
    if zone is null or zone = s.time_zone then
        return query select d.day, d.starts_at, d.resource_type, d.event_count, d.total_value
                       from usage.daily_series(daily_series.since, daily_series.until, daily_series.collection) d;
        return;
    elsif s.source is null then
        raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach';
    end if;
    perform now() at time zone zone;  -- fails for one that does not exist
    if since is null or until <= since then
        return;
    end if;
    top := usage.effective_frontier();
    if until is null or until > top then
        raw_from := array[greatest(top, since)];
        raw_to := array[until];
    end if;
    if since < top then
        bound := least(until, top);  -- least() ignores a null
        if s.hourly_since is not null then
            first_hour := greatest(usage.hours_from(since), usage.hours_from(s.hourly_since), '1900-01-01 00:00:00+00');
            last_hour := case when bound < top then usage.hours_to(bound) else usage.hours_from(top) end;
        end if;
        if first_hour < last_hour then
            raw_from := raw_from || since || last_hour;
            raw_to := raw_to || first_hour || bound;
            first_row := least((select min(f.hour) from usage.hourly_collection_fact f where f.hour >= first_hour),
                               (select usage.hour_of(min(l.created_at)) from usage.late_change l where l.created_at >= first_hour));
            select array_agg(c.from_at), array_agg(c.to_at) into cuts_from, cuts_to
              from (select distinct greatest(usage.hours_to(case when m.changed then m.midnight - interval '3 hours' else m.midnight end), first_hour) as from_at,
                           least(usage.hours_from(m.midnight), last_hour) as to_at
                      from (select d.midnight, (d.midnight at time zone zone) - ((d.midnight - interval '3 hours') at time zone zone) <> interval '3 hours' as changed
                              from generate_series(0, usage.local_day(least(last_hour, top), zone) - usage.local_day(first_row, zone) + 1) n,
                                   lateral (select usage.day_start(usage.local_day(first_row, zone) + n, zone) as midnight) d) m) c
             where c.from_at < c.to_at;
            select array_agg(h.hour) into cut_hours
              from unnest(cuts_from, cuts_to) c (from_at, to_at), generate_series(c.from_at, c.to_at - interval '1 hour', interval '1 hour') h (hour);
            raw_from := raw_from || cuts_from;
            raw_to := raw_to || (select array_agg(least(c.to_at, top) order by c.n) from unnest(cuts_to) with ordinality c (to_at, n));
            hours := usage.hour_fact_sql('hourly_collection_fact', first_hour, last_hour, 1, usage.keys_of(collection, false), 'f.hour',
                                         case when cut_hours is not null then format('f.hour <> all (%L::timestamptz[])', cut_hours) end);
        else
            first_hour := null;
            raw_from := raw_from || since;
            raw_to := raw_to || bound;
        end if;
    end if;
    if exists (select from unnest(raw_from, raw_to) r (from_at, to_at)
                where r.from_at < s.sealed_until and coalesce(r.from_at < r.to_at, true)) then
        raise invalid_parameter_value using
            message = format('days of %s before %s cannot be told: they are sealed by days of %s, and their raw events may be gone', zone, s.sealed_until, s.time_zone);
    end if;
    return query execute format($query$
        select z.day, usage.day_label(z.day, $1), z.resource_type::text, sum(z.event_count)::bigint, sum(z.total_value)::float8
          from (select usage.local_day(e.created_at, $1) as day, e.resource_type, e.sign as event_count,
                       coalesce(usage.signed(e.sign, e.value), 0) as total_value
                  from %s e%s) z
         group by 1, 3
        having sum(z.event_count) <> 0
         order by 1 desc, z.resource_type::text collate "C" nulls last$query$,
        usage.measured_sql(
            array_fill(1, array[cardinality(raw_from)]), raw_from, raw_to, first_hour, least(last_hour, top),
            case when cut_hours is not null then format('usage.hour_of(l.created_at) <> all (%L::timestamptz[])', cut_hours) end,
            collection),
        case when hours is not null then format($query$
                union all
                select usage.local_day(h.hour, $1), h.resource_type, h.event_count, h.total_value
                  from (select y.bucket as hour, k.resource_type, sum(y.event_count) as event_count, sum(y.total_value) as total_value
                          from (%s) y
                          join usage.key k on k.id = y.key_id
                         group by 1, 2) h$query$, hours) else '' end)
    using zone;
end $$;
comment on function usage.daily_series(timestamptz, timestamptz, uuid, text) is
'Usage in [since, until) by day of any time zone and by resource type, newest day first; exact in this snapshot. From the hourly rollup, where it is on (aggregator attach --hourly), else from raw events. An error where sealed days would have to be read raw.';

-- Whether an hourly rollup would pay ----------------------------------------------------------------------------------------

create function usage.hourly_gain(hours integer, at_most integer, out events_per_day bigint, out events bigint, out rows bigint, out whole boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set row_security = off
as $$
declare
    today   date;
    hour    timestamptz;
    found   record;
begin
    if hours is null or (select s.source is null from usage.state s) then
        return;
    end if;
    select usage.local_day(now(), s.time_zone) into today from usage.state s;
    select sum(t.event_count) / count(distinct t.day) into events_per_day
      from usage.daily_total t
     where t.day >= today - 30 and t.day < today;
    events := 0;
    rows := 0;
    whole := true;
    for n in 1 .. hours loop
        hour := usage.hour_of(now()) - n * 157 % 719 * interval '1 hour';  -- all times of the day, over 30 days
        execute $query$
            select coalesce(sum(k.events), 0)::bigint as events, count(*) as rows
              from (select count(*) as events
                      from (select e.collection_id, e.resource_type, e.detail ->> 'job_type' as job_type, e.detail ->> 'model_level' as model_level
                              from usage.event() e
                             where e.created_at >= $1 and e.created_at < $1 + interval '1 hour'
                             limit $2) x
                     group by x.collection_id, x.resource_type, x.job_type, x.model_level) k$query$
           into found using hour, at_most;
        events := events + found.events;
        rows := rows + found.rows;
        whole := whole and found.events < at_most;
    end loop;
exception when undefined_table or undefined_column then  -- renamed or dropped by the host: usage.problems() says so
    events := null;
    rows := null;
end $$;
comment on function usage.hourly_gain(integer, integer) is
'How dense the source is: events of a day (of the last 30, as rolled up), and in a sample of hours, each counted up to a limit, how many events become how many rows of the hourly rollup; whole: no hour reached the limit.';
