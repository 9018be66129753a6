-- Running sums within dense hours, so that a window to the second is read from few rows and few raw events.

-- Where an hour has ten thousand events, up to half of them were read raw, and before them up to twelve hours of rows. So six
-- hours of UTC that have many events get marks: instants in them, a few thousand events apart, up to each of which usage.mark_fact
-- has the sums of these six hours. Any instant in them is then one mark's rows, and the events between it and the nearest mark.
--
-- Marks are made behind the frontier, by a refresh that has time, from what is folded and raw; and let go of by triggers,
-- whoever changes what they were made from: the hours that they lie in are read instead, until they are made anew. So they need
-- not be kept by folds, nor by releases that know of none.

create function usage.six_hours_of(at timestamptz) returns timestamptz
language sql immutable parallel safe
return case when at >= '0001-01-03 00:00:00+00' and at < '9999-12-30 00:00:00+00'
            then pg_catalog.date_bin('6 hours', at, '2000-01-01 00:00:00+00') end;
comment on function usage.six_hours_of(timestamptz) is
'The six hours, of the four in a day of UTC, that an instant lies in, by their first instant; null where usage.hour_of() is.';

create table usage.six_hours (
    starts_at    timestamptz not null,
    event_count  bigint      not null,
    marks        timestamptz[],
    halves       timestamptz[],
    unmarked_at  timestamptz,
    constraint six_hours_pkey primary key (starts_at),
    constraint six_hours_starts_at check (starts_at = usage.six_hours_of(starts_at)),
    constraint six_hours_marks check (marks[cardinality(marks)] = starts_at + interval '6 hours' and cardinality(halves) = cardinality(marks))
) with (fillfactor = 80);
create index six_hours_event_count on usage.six_hours (event_count) where marks is null;
comment on table usage.six_hours is
'Six hours of UTC each, of those that usage.hourly_collection_fact has. Kept by a trigger on it.';
comment on column usage.six_hours.starts_at is 'First instant of the six hours.';
comment on column usage.six_hours.event_count is 'Number of events.';
comment on column usage.six_hours.marks is
'The instants, in order, up to which usage.mark_fact has sums of these six hours, the last one their end; null: they were not made; {}: they would not pay.';
comment on column usage.six_hours.halves is
'Where half of the events lie between the mark before (or the beginning) and each mark: which of the two is nearer.';
comment on column usage.six_hours.unmarked_at is 'When what they were made from was changed; null: not since they were made, if they were.';
comment on constraint six_hours_starts_at on usage.six_hours is 'They are named by their first instant.';
comment on constraint six_hours_marks on usage.six_hours is 'The last mark has the sums of all six hours, and each has its half.';
comment on index usage.six_hours_event_count is 'What is to be marked: usage.six_hours has a row for each six hours of history.';

create table usage.mark_fact (
    at               timestamptz not null,
    key_id           integer     not null,
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    constraint mark_fact_pkey primary key (at, key_id)
);
comment on table usage.mark_fact is
'Sums of the events before an instant, from the beginning of its six hours on, by collection and resource type: only of the instants in usage.six_hours.marks; others are remains.';
comment on column usage.mark_fact.at is 'The instant, behind the first one of its six hours and at most their end.';
comment on column usage.mark_fact.key_id is 'usage.key.id of a key without job type and model level.';
comment on column usage.mark_fact.event_count is 'Number of events.';
comment on column usage.mark_fact.total_value is 'Exact sum of the type''s value, in usage.metric.unit.';
comment on column usage.mark_fact.secondary_value is 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.';

-- What marks were made from ---------------------------------------------------------------------------------------------------

-- A fold of a late change touches the row of its hour, also where it changes no sum of it.
create function usage.keep_six_hours() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate usage.six_hours, usage.mark_fact;
        return null;
    end if;
    execute format($sql$
        insert into usage.six_hours as s (starts_at, event_count)
        select usage.six_hours_of(h.hour), sum(h.event_count)
          from (%s) h (hour, event_count)
         group by 1
         order by 1
            on conflict (starts_at) do update
           set event_count = s.event_count + excluded.event_count,
               marks = null,
               unmarked_at = case when s.marks is null then s.unmarked_at else now() end$sql$,
        concat_ws(' union all ',
            case when tg_op <> 'DELETE' then 'select n.hour, n.event_count from new_hours n' end,
            case when tg_op <> 'INSERT' then 'select o.hour, -o.event_count from old_hours o' end));
    if tg_op = 'DELETE' then
        with gone as (
            delete from usage.six_hours s
             where s.starts_at in (select usage.six_hours_of(o.hour) from old_hours o)
               and not exists (select from usage.hourly_collection_fact f
                                where f.hour >= s.starts_at and f.hour < s.starts_at + interval '6 hours')
            returning s.starts_at)
        delete from usage.mark_fact m
         using gone g
         where m.at > g.starts_at and m.at <= g.starts_at + interval '6 hours';
    end if;
    return null;
end $$;
comment on function usage.keep_six_hours() is
'Trigger on usage.hourly_collection_fact: counts the events of six hours, and lets go of the marks of those that are changed.';

create trigger keep_six_hours_insert after insert on usage.hourly_collection_fact
    referencing new table as new_hours for each statement execute function usage.keep_six_hours();
create trigger keep_six_hours_update after update on usage.hourly_collection_fact
    referencing new table as new_hours old table as old_hours for each statement execute function usage.keep_six_hours();
create trigger keep_six_hours_delete after delete on usage.hourly_collection_fact
    referencing old table as old_hours for each statement execute function usage.keep_six_hours();
create trigger keep_six_hours_truncate after truncate on usage.hourly_collection_fact
    for each statement execute function usage.keep_six_hours();

-- What went uncaptured may have changed events within an hour, and left its sums as they were. A repair looks at hours alone.
create function usage.let_go_of_marks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    from_at timestamptz := '-infinity';
    to_at   timestamptz := 'infinity';
begin
    if tg_table_name = 'verification' then
        select usage.day_start(new.day_from, s.time_zone), usage.day_start(new.day_to, s.time_zone)
          into from_at, to_at
          from usage.state s;
    end if;
    update usage.six_hours s
       set marks = null, unmarked_at = now()
     where s.marks is not null and s.starts_at >= from_at - interval '6 hours' and s.starts_at <= to_at;
    return null;
end $$;
comment on function usage.let_go_of_marks() is
'Trigger on usage.state and usage.verification: lets go of all marks when trust is turned off, and of those in days that were repaired.';

create trigger let_go_of_marks after update of trusted on usage.state
    for each row when (not new.trusted) execute function usage.let_go_of_marks();
create trigger let_go_of_marks after insert on usage.verification
    for each row when (new.repaired) execute function usage.let_go_of_marks();

insert into usage.six_hours (starts_at, event_count)
select usage.six_hours_of(f.hour), sum(f.event_count)
  from usage.hourly_collection_fact f
 group by 1
 order by 1;
analyze usage.six_hours;

-- Whoever keeps hours makes marks, until deploy/roles.sql is run again.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant %s on usage.six_hours, usage.mark_fact to %s%s', g.privilege_type,
                      case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                      case when g.is_grantable then ' with grant option' else '' end)
          from pg_class c, aclexplode(c.relacl) g
         where c.oid = 'usage.hourly_collection_fact'::regclass and g.grantee <> c.relowner
           and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        union all
        select format('grant execute on function usage.six_hours_of(timestamptz) to %s%s',
                      case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc p, aclexplode(p.proacl) a
         where p.oid = 'usage.hour_of(timestamptz)'::regprocedure and a.grantee not in (0, p.proowner)
    loop
        execute statement;
    end loop;
end $$;

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
           and s.relname in ('daily_fact', 'daily_collection_fact', 'daily_total', 'monthly_fact', 'monthly_collection_fact',
                             'quarterly_collection_fact', 'hourly_fact', 'hourly_collection_fact', 'six_hours', 'mark_fact',
                             'key', 'late_change', 'trailing', 'monthly_ranking')
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

-- Readers ----------------------------------------------------------------------------------------------------------------------

alter type usage.window_parts add attribute mark_signs integer[];  -- marks whose sums are added, or taken off
alter type usage.window_parts add attribute marks timestamptz[];

-- A range of hours, with what a window cuts of them, is taken apart into six hours. Of those that have no marks, hours are read as
-- before. Of others a sum up to either end: the nearest mark's, and the events between; at a whole hour the beginning's, which is
-- nothing, or the end's, whichever is nearer, and the hours between.
create function usage.with_marks(p usage.window_parts, since timestamptz, until timestamptz) returns usage.window_parts
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    was       constant usage.window_parts := p;
    sealed    timestamptz;
    counted   tstzmultirange;  -- where late changes count: all of the window but what is read raw, and what is taken off raw
    cut       tstzmultirange;
    gaps      tstzmultirange;
    sign      integer;         -- of a range
    from_at   timestamptz;     -- where it begins and ends, cut
    to_at     timestamptz;
    from_cut  integer;         -- the numbers of its cuts; null: it has none there
    to_cut    integer;
    starts    timestamptz;     -- six hours
    ends      timestamptz;
    found     usage.six_hours;
    number    integer;         -- of the mark before a bound
    before    timestamptz;     -- it, or the beginning
    after     timestamptz;
    bounds    timestamptz[];   -- the part of the range that lies in them: from, to
    marks     timestamptz[];   -- and the marks to go by
    by_hours  boolean[];       -- they are whole hours
    midnight  boolean;         -- one is where a day begins or ends, not the window
    add       integer;
begin
    -- With a doubt, or where it is not exact, as it is.
    if p.hour_signs is null or p.reasons <> '{}'
       or not exists (select from unnest(p.hours_from, p.hours_to) h (from_hour, to_hour), usage.six_hours s
                       where s.starts_at > h.from_hour - interval '7 hours' and s.starts_at < h.to_hour + interval '1 hour'
                         and s.marks <> '{}') then
        return p;
    end if;
    select s.sealed_until into sealed from usage.state s;
    p.hour_signs := null;
    p.hours_from := null;
    p.hours_to := null;
    p.cut_signs := null;
    p.cut_from := null;
    p.cut_to := null;
    for n in 1 .. cardinality(was.hour_signs) loop
        sign := was.hour_signs[n];
        from_at := was.hours_from[n];
        to_at := was.hours_to[n];
        from_cut := null;
        to_cut := null;
        for c in 1 .. coalesce(cardinality(was.cut_signs), 0) loop
            if was.cut_signs[c] = sign and was.cut_to[c] = was.hours_from[n] or was.cut_signs[c] = -sign and was.cut_from[c] = was.hours_from[n] then
                from_cut := c;
                from_at := case when was.cut_signs[c] = sign then was.cut_from[c] else was.cut_to[c] end;
            elsif was.cut_signs[c] = sign and was.cut_from[c] = was.hours_to[n] or was.cut_signs[c] = -sign and was.cut_to[c] = was.hours_to[n] then
                to_cut := c;
                to_at := case when was.cut_signs[c] = sign then was.cut_to[c] else was.cut_from[c] end;
            end if;
        end loop;
        starts := usage.six_hours_of(from_at);
        if starts is null then  -- before the first of all hours
            return was;
        end if;
        while starts < to_at loop
            ends := starts + interval '6 hours';
            bounds := array[greatest(from_at, starts), least(to_at, ends)];
            select * into found from usage.six_hours s where s.starts_at = starts;
            if coalesce(found.marks, '{}') = '{}' or ends > p.frontier then  -- the frontier may have been put back
                if bounds[1] = from_at and from_cut is not null then
                    p.cut_signs := p.cut_signs || was.cut_signs[from_cut];
                    p.cut_from := p.cut_from || was.cut_from[from_cut];
                    p.cut_to := p.cut_to || was.cut_to[from_cut];
                end if;
                if bounds[2] = to_at and to_cut is not null then
                    p.cut_signs := p.cut_signs || was.cut_signs[to_cut];
                    p.cut_from := p.cut_from || was.cut_from[to_cut];
                    p.cut_to := p.cut_to || was.cut_to[to_cut];
                end if;
                -- Where the past is not filled in yet, hours begin later than the range.
                bounds := array[case when bounds[1] = from_at then was.hours_from[n] else greatest(bounds[1], was.hours_from[n]) end,
                                case when bounds[2] = to_at then was.hours_to[n] else bounds[2] end];
                if bounds[1] < bounds[2] then
                    p.hour_signs := p.hour_signs || sign;
                    p.hours_from := p.hours_from || bounds[1];
                    p.hours_to := p.hours_to || bounds[2];
                end if;
            else
                for e in 1 .. 2 loop
                    by_hours[e] := usage.hour_of(bounds[e]) = bounds[e];
                    if by_hours[e] then
                        marks[e] := case when bounds[e] - starts <= ends - bounds[e] then starts else ends end;
                    else
                        number := width_bucket(bounds[e], found.marks);
                        before := case when number = 0 then starts else found.marks[number] end;
                        after := found.marks[number + 1];
                        -- Nothing is read raw below the seal; and of a midnight's neighbours the one in the day, or events would count twice.
                        midnight := bounds[e] is distinct from since and bounds[e] is distinct from until;
                        if before < bounds[e] and (before < sealed or e = 1 and midnight) then
                            before := null;
                        end if;
                        if e = 2 and midnight then
                            after := null;
                        end if;
                        marks[e] := case when before is null or bounds[e] >= found.halves[number + 1] then coalesce(after, before) else before end;
                    end if;
                end loop;
                -- Without a mark to go by both bounds lie behind the same one.
                if marks[2] is null or marks[1] = marks[2] and not by_hours[1] and not by_hours[2] then
                    p.cut_signs := p.cut_signs || sign;
                    p.cut_from := p.cut_from || bounds[1];
                    p.cut_to := p.cut_to || bounds[2];
                else
                    for e in 1 .. 2 loop
                        add := case e when 1 then -sign else sign end;
                        if marks[e] > starts then
                            p.mark_signs := p.mark_signs || add;
                            p.marks := p.marks || marks[e];
                        end if;
                        if marks[e] > bounds[e] then
                            add := -add;
                        end if;
                        if marks[e] <> bounds[e] and by_hours[e] then
                            p.hour_signs := p.hour_signs || add;
                            p.hours_from := p.hours_from || least(marks[e], bounds[e]);
                            p.hours_to := p.hours_to || greatest(marks[e], bounds[e]);
                        elsif marks[e] <> bounds[e] then
                            p.cut_signs := p.cut_signs || add;
                            p.cut_from := p.cut_from || least(marks[e], bounds[e]);
                            p.cut_to := p.cut_to || greatest(marks[e], bounds[e]);
                        end if;
                    end loop;
                end if;
            end if;
            starts := ends;
        end loop;
    end loop;
    -- A late change counts where it did not, and the other way round, for each cut that was there and each that is there now.
    counted := tstzmultirange(tstzrange(p.late_from, p.late_to));
    for n in 1 .. coalesce(cardinality(p.gap_from), 0) loop
        counted := counted - tstzmultirange(tstzrange(p.gap_from[n], p.gap_to[n]));
    end loop;
    for n in 1 .. coalesce(cardinality(was.cut_signs || p.cut_signs), 0) loop
        cut := tstzmultirange(tstzrange((was.cut_from || p.cut_from)[n], (was.cut_to || p.cut_to)[n]));
        counted := (counted + cut) - (counted * cut);
    end loop;
    p.late_from := lower(counted);
    p.late_to := upper(counted);
    gaps := tstzmultirange(tstzrange(p.late_from, p.late_to)) - counted;
    p.gap_from := (select array_agg(lower(g.gap) order by g.gap) from unnest(gaps) g (gap));
    p.gap_to := (select array_agg(upper(g.gap) order by g.gap) from unnest(gaps) g (gap));
    return p;
end $$;
comment on function usage.with_marks(usage.window_parts, timestamptz, timestamptz) is
'The parts of the window [since, until) of all collections, by marks where there are some; as they were where there are none.';

-- As before, and marks.
create or replace function usage.hours_sql(p usage.window_parts, by_key boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    keys integer[];
begin
    if p.hour_signs is null and p.marks is null then
        return null;
    end if;
    keys := usage.keys_of(collection, by_key);
    return concat_ws(' union all ',
        (select string_agg(usage.hour_fact_sql(case when by_key then 'hourly_fact' else 'hourly_collection_fact' end,
                                               h.from_hour, h.to_hour, h.sign, keys,
                                               -- a range lies in one day
                                               replace(bucket, '*', format('%L::date', usage.local_day(h.from_hour, p.zone))), null),
                           ' union all ')
           from unnest(p.hour_signs, p.hours_from, p.hours_to) h (sign, from_hour, to_hour)),
        (select string_agg(format('select f.key_id, %1$s * f.event_count as event_count, %1$s * f.total_value as total_value,'
                                  ' %1$s * f.secondary_value as secondary_value from usage.mark_fact f where f.at = %2$L::timestamptz',
                                  m.sign, m.at), ' union all ')
           from unnest(p.mark_signs, p.marks) m (sign, at)));
end $$;
comment on function usage.hours_sql(usage.window_parts, boolean, uuid, text) is
'A statement that reads the hours of a window from the hourly rollup: by key or by collection and type, of one collection or (null) all; null: there are none. And its marks, if usage.with_marks() gave it some. bucket: as in usage.fact_sql(), of the day that the hours lie in.';
