-- Put what is new into functions that have it not, or take it out again: the texts of both stand here alone.
do $do$
declare
    undo    constant boolean := position('with_totals' in pg_get_functiondef('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)'::regprocedure)) > 0;
    patched record;
    text    text;
begin
    for patched in
        select p.function, array_agg(case when undo then p.new else p.old end) as olds, array_agg(case when undo then p.old else p.new end) as news
          from (values ('usage.with_marks(usage.window_parts, timestamptz, timestamptz)', $$
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
$$, $$
    return usage.with_late_of(p, was.cut_from, was.cut_to, p.cut_from, p.cut_to);
$$),
                       ('usage.with_marks(usage.window_parts, timestamptz, timestamptz)', $$
    counted   tstzmultirange;  -- where late changes count: all of the window but what is read raw, and what is taken off raw
    cut       tstzmultirange;
    gaps      tstzmultirange;
    sign      integer;         -- of a range$$, $$
    sign      integer;         -- of a range$$),
                       ('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)', $$
        else usage.window_parts(since, until) end;$$, $$
        when collection is null and daily and not (by_collection or ai or receipt) then usage.with_totals(usage.window_parts(since, until))
        else usage.window_parts(since, until) end;$$),
                       ('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)',
            'case when p.hour_signs is not null or p.marks is not null then usage.hours_sql(',
            'case when p.hour_days is null and (p.hour_signs is not null or p.marks is not null) then usage.hours_sql('),
                       ('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)', $$
        elsif p.day_from < p.day_to then
            series := format('select t.day, t.resource_type, t.event_count, t.total_value, t.secondary_value, 1 as rollup_rows'
                             ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to);
        end if;$$, $$
        else
            series := 'select t.*, 1 as rollup_rows from (' || usage.total_sql(p, '*') || ') t';
        end if;$$),
                       ('usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text)', $$
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    constant boolean := by_job_type or by_model_level;
    by_total  constant boolean := not by_key and not by_collection and collection is null;
$$, $$
    by_key    constant boolean := by_job_type or by_model_level;
    by_total  constant boolean := not by_key and not by_collection and collection is null;
    p         usage.window_parts := case when by_total then usage.with_totals(usage.window_parts(since, until)) else usage.window_parts(since, until) end;
$$),
                       ('usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text)',
            'if p.hour_signs is not null then', 'if p.hour_signs is not null and p.hour_days is null then'),
                       ('usage.window_sums(timestamptz, timestamptz, uuid, boolean, boolean, boolean, text)', $$
        if p.day_from < p.day_to then
            parts := array_append(parts, format(
                'select usage.bucket_of(t.day, $1) as bucket, null::uuid as collection_id, t.resource_type, null::text as job_type,'
                ' null::text as model_level, t.event_count, t.total_value, t.secondary_value'
                ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to));
        end if;$$, $$
        parts := parts || array(
            select 'select t.bucket, null::uuid as collection_id, t.resource_type, null::text as job_type, null::text as model_level,'
                   ' t.event_count, t.total_value, t.secondary_value from (' || r.rolled || ') t (bucket, resource_type, event_count, total_value, secondary_value)'
              from usage.total_sql(p, bucket_is) r (rolled)
             where r.rolled is not null);$$),
                       ('usage.keep_six_hours()', 'truncate usage.six_hours, usage.mark_fact;', 'truncate usage.six_hours, usage.mark_fact, usage.mark_total;'),
                       ('usage.keep_six_hours()', $$
               marks = null,
               unmarked_at$$, $$
               marks = null,
               has_totals = null,
               unmarked_at$$),
                       ('usage.keep_six_hours()', $$
            returning s.starts_at)
        delete from usage.mark_fact m$$, $$
            returning s.starts_at), totals as (
            delete from usage.mark_total m
             using gone g
             where m.at > g.starts_at and m.at < g.starts_at + interval '6 hours')
        delete from usage.mark_fact m$$),
                       ('usage.let_go_of_marks()', 'set marks = null, unmarked_at', 'set marks = null, has_totals = null, unmarked_at'),
                       ('usage.analyze_changed()', $$'six_hours', 'mark_fact',$$, $$'hourly_total', 'six_hours', 'mark_fact', 'mark_total',$$)
            ) p (function, old, new)
         group by p.function
    loop
        text := pg_get_functiondef(patched.function::regprocedure);
        for n in 1 .. cardinality(patched.olds) loop
            if position(patched.olds[n] in text) = 0 then
                raise 'migration 0014 does not know this %', patched.function;
            end if;
            text := replace(text, patched.olds[n], patched.news[n]);
        end loop;
        execute text;
    end loop;
end $do$;

select usage.restore_grants();
