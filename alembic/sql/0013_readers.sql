-- Put what is new into readers that have it not, or take it out again: the texts of both stand here alone.
do $do$
declare
    patched record;
    text    text;
begin
    for patched in
        select *
          from (values ('usage.by_collection(timestamptz, timestamptz, uuid)',
            'p := usage.window_parts(by_collection.since, by_collection.until);',
            'p := usage.with_marks(usage.window_parts(by_collection.since, by_collection.until), by_collection.since, by_collection.until);'),
                       -- Not of marks: a window within a day, by hours, misses what days would.
                       ('usage.window_parts(timestamptz, timestamptz)', 'usage.lookback_reason(p.day_from)',
            'usage.lookback_reason(coalesce(p.day_from, usage.local_day(p.hours_from[1], p.zone)))'),
                       ('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)',
            'p        usage.window_parts := usage.window_parts(since, until);',
            'p        usage.window_parts := case
        when collection is null and by_collection and not (ai or daily or receipt) then usage.with_marks(usage.window_parts(since, until), since, until)
        else usage.window_parts(since, until) end;'),
                       ('usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean)',
            'case when p.hour_signs is not null then usage.hours_sql(',
            'case when p.hour_signs is not null or p.marks is not null then usage.hours_sql('),
                       ('usage.planned_by_collection(usage.window_parts, jsonb, jsonb)', $$ offset '0') f
                         where h.sign < 0) f$$, $$ offset '0') f
                         where h.sign < 0
                        union all
                        select f.key_id, f.event_count, f.total_value, f.secondary_value
                          from unnest(p.mark_signs, p.marks) m (sign, at),
                               lateral (select x.* from usage.mark_fact x where x.at = m.at offset '0') f
                         where m.sign > 0
                        union all
                        select f.key_id, -f.event_count, -f.total_value, -f.secondary_value
                          from unnest(p.mark_signs, p.marks) m (sign, at),
                               lateral (select x.* from usage.mark_fact x where x.at = m.at offset '0') f
                         where m.sign < 0) f$$)) p (function, old, new)
    loop
        text := pg_get_functiondef(patched.function::regprocedure);
        if position(patched.new in text) > 0 then
            execute replace(text, patched.new, patched.old);
        elsif position(patched.old in text) > 0 then
            execute replace(text, patched.old, patched.new);
        else
            raise 'migration 0013 does not know this %', patched.function;
        end if;
    end loop;
end $do$;

select usage.restore_grants();
