-- Functions of schema usage. Everything a reader calls is STABLE or IMMUTABLE: a VOLATILE function would take new
-- snapshots. Readers are SECURITY DEFINER with a fixed search_path, so a reader needs no access to the raw table.

-- Contents: what an event adds --------------------------------------------------------------------------------

-- Two halves, so that a query can work out the first once and test it three times (a tenth of a fold's time).
-- Strings of more than 15000 characters, less white space and leading zeros, are refused before the cast, which fails
-- past 131072 digits: they are out of bounds in any case.
create function usage.parsed_number(v jsonb) returns numeric
language sql immutable parallel safe
return case
    when v is null then null
    when pg_catalog.jsonb_typeof(v) = 'number' then v::numeric
    when pg_catalog.jsonb_typeof(v) = 'string' then
        case when pg_catalog.octet_length(v #>> '{}') <= 15000
              and (v #>> '{}') collate "C" ~ '^[ \t\n\r\f\v]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t\n\r\f\v]*$'
             then pg_catalog.btrim(v #>> '{}', e' \t\n\r\f\v')::numeric
             when pg_catalog.octet_length(v #>> '{}') > 15000
              and pg_catalog.octet_length(pg_catalog.ltrim(pg_catalog.btrim(v #>> '{}', e' \t\n\r\f\v'), '+-0')) <= 15000
              and (v #>> '{}') collate "C" ~ '^[ \t\n\r\f\v]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t\n\r\f\v]*$'
             then (case when pg_catalog.ltrim(v #>> '{}', e' \t\n\r\f\v') collate "C" like '-%' then '-0' else '0' end
                   || pg_catalog.ltrim(pg_catalog.btrim(v #>> '{}', e' \t\n\r\f\v'), '+-0'))::numeric end
end;
comment on function usage.parsed_number(jsonb) is
'The number in a member of detail, a JSON number or a numeric string, of any size; else null. Never fails.';

create function usage.in_bounds(n numeric) returns numeric
language sql immutable parallel safe
return case when n between -1e18 and 1e18 and pg_catalog.scale(n) <= 40 then n end;
comment on function usage.in_bounds(numeric) is 'The number, if |n| <= 1e18 with at most 40 decimals; else null.';

create function usage.is_rejected(v jsonb, n numeric) returns boolean
language sql immutable parallel safe
return v is not null and n is null and pg_catalog.jsonb_typeof(v) <> 'null';
comment on function usage.is_rejected(jsonb, numeric) is
'Whether a member of detail is there and not JSON null, and yet gave no number n within bounds.';

create function usage.key_text(v text) returns text
language sql immutable parallel safe
return case when pg_catalog.octet_length(v) <= 128 or pg_catalog.length(v) <= 128 then v
            else pg_catalog."left"(v, 96) || '…' || pg_catalog.md5(v) end;
comment on function usage.key_text(text) is
'Key text as the rollups keep it: over 128 characters it becomes its first 96, … and its md5.';

-- Time zone: the one home of days and their instants ------------------------------------------------------------

create function usage.local_day(at timestamptz, zone text) returns date
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
comment on function usage.local_day(timestamptz, text) is
'The local day that an instant lies in; -infinity before year 1 and infinity after 9999.';

create function usage.day_label(day date, zone text) returns timestamptz
language sql immutable parallel safe
return day::timestamp at time zone zone;
comment on function usage.day_label(date, text) is
'The instant that names a local day in the contract: date_trunc(''day'', ...) of its events.';

-- Where midnight happens twice (Atlantic/Azores, America/Havana) the label is the second one.
create function usage.day_start(day date, zone text) returns timestamptz
language sql immutable parallel safe
return case
    when day = '-infinity' then '-infinity'::timestamptz
    when day = 'infinity' then ('10000-01-01'::timestamp at time zone zone)
    else (day::timestamp at time zone zone) - greatest(
        interval '0',
        (((day::timestamp at time zone zone) - interval '1 microsecond') at time zone zone)
            + interval '1 microsecond' - day::timestamp)
end;
comment on function usage.day_start(date, text) is 'The first instant of a local day, inclusive; that of the next day ends it.';

create function usage.next_day(day date) returns date
language sql immutable parallel safe
return case when day = '-infinity' then '0001-01-01'::date when day >= '9999-12-31' then 'infinity'::date else day + 1 end;
comment on function usage.next_day(date) is 'The bucket after a day: the end buckets -infinity and infinity enclose years 1-9999.';

create function usage.month_of(day date) returns date
language sql immutable parallel safe
return case when pg_catalog.isfinite(day) then pg_catalog.date_trunc('month', day::timestamp)::date else day end;
comment on function usage.month_of(date) is 'First day of a day''s month; the end buckets are months of their own.';

create function usage.next_month(month date) returns date
language sql immutable parallel safe
return case when month = '-infinity' then '0001-01-01'::date
            when month >= '9999-12-01' then 'infinity'::date
            else (month::timestamp + interval '1 month')::date end;
comment on function usage.next_month(date) is 'The monthly bucket after a month.';

create function usage.window_start(days numeric, zone text, at timestamptz default pg_catalog.now()) returns timestamptz
language sql immutable parallel safe
return ((at at time zone zone)
        - pg_catalog.make_interval(days => greatest(1, least(365, days))::integer)) at time zone zone;
comment on function usage.window_start(numeric, text, timestamptz) is
'The instant N local days before another, same wall clock time; days are clamped into 1-365.';

-- The host's tables: attach replaces these two, the only names that know them -----------------------------------

create function usage.event()
returns table (created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach';
end $$;
comment on function usage.event() is 'The events of the source table, late-bound.';

create function usage.collection() returns table (id uuid, title text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    raise object_not_in_prerequisite_state using message = 'not attached: run aggregator attach';
end $$;
comment on function usage.collection() is 'The collections and their titles, late-bound; empty without a title table.';

-- Reading events: the one place that knows what an event adds, and to which key ----------------------------------

-- Up to three ranges of raw events, each with a sign (null bounds: none; tail_to null: open), and one of late changes
-- (late_sign null: both signs). Inlined into its caller, so it must stay one SELECT without SET or SECURITY DEFINER;
-- callers hand in values, so that the planner drops what is null. Both OFFSET 0 are fences: without them each
-- expression below would be worked out anew wherever it is used.
create function usage.measured(
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
comment on function usage.measured(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer) is
'Signed events of some ranges with their key and values: the metric expression''s one home, for folds, reads and verify.';

create function usage.signed(sign integer, n numeric) returns numeric
language sql immutable parallel safe
return case when sign > 0 then n else -n end;
comment on function usage.signed(integer, numeric) is 'The number with an event''s sign.';

-- Capture: attach replaces these two with ones that know the source's name --------------------------------------

create function usage.capture() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end $$;
comment on function usage.capture() is
'Trigger: copy a changed event that lies below the frontier into usage.late_change. Fires for the source and its partitions only.';

create function usage.capture_truncate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end $$;
comment on function usage.capture_truncate() is
'Trigger: append a truncate marker, and nothing else: touching usage.state would deadlock with a fold.';

create function usage.frontier_for_writers() returns timestamptz
language sql volatile
return pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value('usage.frontier_seq'::regclass) / 1e6::float8);
comment on function usage.frontier_for_writers() is 'The frontier as writers see it now, outside any snapshot.';

create function usage.seal_for_writers() returns timestamptz
language sql volatile
return pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value('usage.seal_seq'::regclass) / 1e6::float8);
comment on function usage.seal_for_writers() is 'The seal as writers see it now, outside any snapshot; null while nothing is sealed.';

-- A changed definition of a metric: what is in the rollups was added up by the old one. Whoever changes metrics holds
-- no lock on the source, so this may wait for a fold without making a host transaction the victim.
create function usage.metric_changed() returns trigger
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

-- Fingerprint and doubt ----------------------------------------------------------------------------------------

-- The xmin of a trigger's catalog row changes when it is disabled and enabled again, even back to ALWAYS. A leaf
-- without our truncate trigger (a partition made after attach), or where it does not fire, is watched by its file
-- number instead.
create function usage.fingerprint() returns jsonb
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
comment on function usage.fingerprint() is
'What capture looks like now: the source and its partitions by oid, each with the states of its capture triggers.';

create function usage.is_captured(trigger_states text, capture_mode text) returns boolean
language sql immutable parallel safe
return case capture_mode when 'origin' then trigger_states like 'usage_delete O %usage_insert O %usage_update O %'
                         else trigger_states like 'usage_delete A %usage_insert A %usage_update A %' end;
comment on function usage.is_captured(text, text) is 'Whether the trigger states of a fingerprint''s entry are those of working capture.';

create function usage.is_rewritten(relation oid, trigger_states text) returns boolean
language sql immutable parallel safe
return trigger_states like '% file %' and trigger_states not like '% file ' || relation;
comment on function usage.is_rewritten(oid, text) is
'Whether a leaf without truncate trigger was truncated or rewritten since it was made: a table''s first file has its oid''s number.';

create function usage.uncaptured() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select min(f.key::oid::regclass::text)
      from usage.state s, jsonb_each_text(usage.fingerprint()) f
     where not usage.is_captured(f.value, s.capture_mode)
$$;
comment on function usage.uncaptured() is 'A relation of the source whose capture triggers are not there or do not fire; null if all do.';

create function usage.fingerprint_doubt() returns text
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
comment on function usage.fingerprint_doubt() is
'Why the source may have changed unseen (partitions, triggers, another table), with what to do; null if it has not.';

create function usage.doubt() returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    s usage.state;
begin
    select * into strict s from usage.state;
    if not s.trusted then
        return s.distrust_reason;
    end if;
    if exists (select from usage.truncate_marker) then
        return 'the source was truncated: run aggregator refresh';
    end if;
    -- Never below in any snapshot: the sequence moves first, and only upwards.
    if isfinite(s.frontier)
       and coalesce(pg_sequence_last_value('usage.frontier_seq') < extract(epoch from s.frontier) * 1000000, true) then
        return 'the frontier sequence is behind the rollups (a restore?): run aggregator refresh';
    end if;
    return usage.fingerprint_doubt();
end $$;
comment on function usage.doubt() is
'Why the rollups above the seal may not be believed in this snapshot, with what to do; null while they may.';

create function usage.effective_frontier() returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select case when usage.doubt() is null then s.frontier else s.sealed_until end from usage.state s
$$;
comment on function usage.effective_frontier() is
'The instant from which readers read raw: the frontier, or the seal while there is doubt.';

-- The window and its parts -------------------------------------------------------------------------------------

create type usage.window_parts as (
    as_of        timestamptz,  -- the moment of the read
    zone         text,
    frontier     timestamptz,  -- as stored; -infinity before the first refresh
    exact        boolean,
    reasons      text[],       -- why not exact, and why slow
    day_from     date,         -- whole days taken from the rollups, [day_from, day_to); null: none
    day_to       date,
    late_from    timestamptz,  -- late changes inside those days
    late_to      timestamptz,
    month_from   date,         -- of these days, whole months taken from monthly, [month_from, month_to); null: none
    month_to     date,
    left_sign    integer,      -- and days of daily added, or taken off the first month
    left_from    date,
    left_to      date,
    right_sign   integer,      -- and added after, or taken off, the last month
    right_from   date,
    right_to     date,
    head_sign    integer,      -- raw left edge: added, or taken off its whole day
    head_from    timestamptz,
    head_to      timestamptz,
    foot_sign    integer,      -- raw right edge, likewise
    foot_from    timestamptz,
    foot_to      timestamptz,
    tail_from    timestamptz,  -- raw from the frontier on; null: none
    tail_to      timestamptz   -- null: open
);
comment on type usage.window_parts is 'How a window [since, until) is put together from months, days, late changes and raw events.';

-- Each cut inside a day or a month is made from its nearer side: a day that is mostly inside is taken whole, less the
-- raw events outside the window; a month likewise, less its days outside. Sums are exact, so this costs no digit, and
-- at most half a day is read raw, and at most half a month by days.
create function usage.window_parts(since timestamptz, until timestamptz) returns usage.window_parts
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

-- The one reader: every section of every answer comes from this statement -----------------------------------------

-- Flags and bounds are handed to the planner as values: branches that are not wanted fold away, and the source is
-- reached by its index only.
create function usage.window_rows(
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
comment on function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean) is
'Sums of the window [since, until), of one collection or (null) all, for the sections asked for, and the receipt of that read.';

create function usage.instant_text(at timestamptz) returns text
language sql immutable parallel safe
return case when not pg_catalog.isfinite(at) then at::text
            when at < '0001-01-01 00:00:00+00'  -- the first local day may begin in 1 BC, which ISO 8601 calls year 0
            then '0000' || pg_catalog.to_char(at at time zone 'UTC', '-MM-DD"T"HH24:MI:SS"Z"')
            else pg_catalog.to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') end;
comment on function usage.instant_text(timestamptz) is
'An instant as the contract writes it, YYYY-MM-DDTHH:MM:SSZ, or -infinity / infinity.';

create function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.resource_type, r.event_count,
           r.total_value::float8 as total_value, r.secondary_value::float8
      from usage.window_rows(since, until, collection, true, false, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'by_collection'
     order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last
$$;
comment on function usage.by_collection(timestamptz, timestamptz, uuid) is
'Usage in [since, until) by collection and resource type, largest total_value first; exact in this snapshot. until null: open.';

create function usage.ai_drilldown(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, job_type text, model_level text,
               tokens_in numeric, tokens_out numeric, event_count bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.job_type, r.model_level,
           round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
      from usage.window_rows(since, until, collection, false, true, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'ai_drilldown'
     order by tokens_in desc, r.collection_id nulls last,
              r.job_type collate "C" nulls last, r.model_level collate "C" nulls last
$$;
comment on function usage.ai_drilldown(timestamptz, timestamptz, uuid) is
'AI usage in [since, until) by collection, job type and model level, largest tokens_in first; tokens are whole numbers.';

create function usage.daily_series(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.day, usage.day_label(r.day, (select s.time_zone from usage.state s)), r.resource_type, r.event_count,
           r.total_value::float8
      from usage.window_rows(since, until, collection, false, false, true) r
     where r.section = 'daily'
     order by r.day desc, r.resource_type collate "C" nulls last
$$;
comment on function usage.daily_series(timestamptz, timestamptz, uuid) is
'Usage in [since, until) by local day and resource type, newest day first; a day cut by the window counts the part inside.';

create function usage.receipt(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (as_of timestamptz, frontier timestamptz, lag interval, exact boolean, reasons text[],
               rollup_rows bigint, raw_rows bigint, pending_changes bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select now(), r.frontier, case when isfinite(r.frontier) then now() - r.frontier end, r.exact, r.reasons,
           r.rollup_rows, r.raw_rows, r.pending_changes
      from usage.window_rows(since, until, collection, true, true, true) r
     where r.section = 'receipt'
$$;
comment on function usage.receipt(timestamptz, timestamptz, uuid) is
'What the overview of [since, until) reads and how far it can be believed; rows are those read for all three sections.';

-- Sections in one statement and one snapshot, typed: the Python read function's source.
create function usage.overview_rows(since timestamptz, until timestamptz default null, collection uuid default null)
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
      from usage.window_rows(since, until, collection, true, true, true) r
      left join usage.collection() c on c.id = r.collection_id
     order by 1, 2
$$;
comment on function usage.overview_rows(timestamptz, timestamptz, uuid) is
'All sections of the overview of [since, until) and its receipt, in the contract''s order, as rows.';

create function usage.overview(since timestamptz, until timestamptz default null, collection uuid default null)
returns json
language sql stable security definer set search_path = pg_catalog, pg_temp set extra_float_digits = 1
as $$
    select json_build_object(
        'by_collection', coalesce(json_agg(json_build_object(
            'collection_id', r.collection_id, 'collection_title', r.collection_title, 'resource_type', r.resource_type,
            'event_count', r.event_count, 'total_value', r.total_value::float8, 'secondary_value', r.secondary_value::float8)
            order by r.ordinal) filter (where r.section = 'by_collection'), '[]'),
        'ai_drilldown', coalesce(json_agg(json_build_object(
            'collection_id', r.collection_id, 'collection_title', r.collection_title,
            'job_type', r.job_type, 'model_level', r.model_level,
            'tokens_in', round(r.total_value), 'tokens_out', round(r.secondary_value), 'event_count', r.event_count)
            order by r.ordinal) filter (where r.section = 'ai_drilldown'), '[]'),
        'daily', coalesce(json_agg(json_build_object(
            'day', usage.instant_text(r.starts_at),
            'resource_type', r.resource_type, 'event_count', r.event_count, 'total_value', r.total_value::float8)
            order by r.ordinal) filter (where r.section = 'daily'), '[]'))
      from usage.overview_rows(since, until, collection) r
$$;
comment on function usage.overview(timestamptz, timestamptz, uuid) is
'The whole overview of [since, until) as the contract''s JSON, from one snapshot.';

create function usage.overview(days numeric default 30, collection uuid default null) returns json
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select usage.overview(usage.window_start(days, s.time_zone), null, collection) from usage.state s
$$;
comment on function usage.overview(numeric, uuid) is
'The whole overview of the last N days, clamped into 1-365, to the microsecond, as the contract''s JSON.';

create function usage.title_of(collection uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return (select c.title from usage.collection() c where c.id = collection);
end $$;
comment on function usage.title_of(uuid) is 'Title of a collection now, or null: joined when read, never stored.';

-- For the live views: a plain function in a view runs with the reader's rights, so these are SECURITY DEFINER ------

create function usage.rolled_until() returns date
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select case when usage.doubt() is null then 'infinity'::date
                else usage.local_day(s.sealed_until, s.time_zone) end
      from usage.state s
$$;
comment on function usage.rolled_until() is
'Rollup rows of days before this one may be used in this snapshot: all (infinity), or those below the seal.';

create function usage.pending_event()
returns table (sign integer, created_at timestamptz, collection_id uuid, resource_type text, detail jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    top timestamptz := usage.effective_frontier();
begin
    return query execute $query$
        select l.sign::integer, l.created_at, l.collection_id, l.resource_type, l.detail
          from usage.late_change l where l.created_at < $1
        union all
        select 1, e.created_at, e.collection_id, e.resource_type, e.detail
          from usage.event() e where e.created_at >= $1
    $query$ using top;
end $$;
comment on function usage.pending_event() is 'Signed events that are not in the rollups (or not in those that may be used).';

create function usage.pending_sums()
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    top  timestamptz := usage.effective_frontier();
    zone text := (select s.time_zone from usage.state s);
begin
    return query execute $query$
        select usage.local_day(e.created_at, $2), e.collection_id, e.resource_type, e.job_type, e.model_level,
               sum(e.sign)::bigint,
               coalesce(sum(usage.signed(e.sign, e.value)), 0),
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
               coalesce(sum(e.sign) filter (where e.rejected), 0)::bigint
          from usage.measured(null, null, null, null, null, null, $1, null, '-infinity', $1, null) e
         group by 1, 2, 3, 4, 5
    $query$ using top, zone;
end $$;
comment on function usage.pending_sums() is
'What is not in the rollups, by day and key, signed: rollup + this = exact, in this snapshot.';

-- Grants ------------------------------------------------------------------------------------------------------------

-- A dump without privileges loses them, and leaves every function open to everybody: so this can be run again.
create function usage.restore_grants() returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    routine regprocedure;
begin
    for routine in
        select p.oid from pg_proc p
         where p.pronamespace = 'usage'::regnamespace and p.proname not in ('capture', 'capture_truncate')
           and has_function_privilege('public', p.oid, 'execute')
    loop
        execute format('revoke all on function %s from public', routine);
    end loop;
    grant select on sequence usage.frontier_seq, usage.seal_seq to public;
    grant execute on function usage.capture(), usage.capture_truncate() to public;
end $$;
comment on function usage.restore_grants() is
'Grant PUBLIC what writers of the source need (the frontier, the trigger functions), and revoke every other function from it.';
