-- Back: triggers only.
do $$
declare
    moved text;
begin
    if exists (select from usage.state s where s.capture_mode = 'lookback') then
        raise object_not_in_prerequisite_state using
            message = 'the source is attached by lookback, which the earlier revision does not know: run aggregator detach first';
    end if;
    foreach moved in array array['usage.captured_fingerprint_doubt()', 'usage.captured_window_parts(timestamptz, timestamptz)',
                                 'usage.captured_problems(interval, interval, bigint, numeric, interval)'] loop
        execute replace(pg_catalog.pg_get_functiondef(moved::pg_catalog.regprocedure), 'FUNCTION usage.captured_', 'FUNCTION usage.');
        execute pg_catalog.format('drop function %s', moved::pg_catalog.regprocedure);
    end loop;
end $$;
drop function usage.lookback_reason(date);

create or replace function usage.is_captured(trigger_states text, capture_mode text) returns boolean
language sql immutable parallel safe
return case capture_mode when 'origin' then trigger_states like 'usage_delete O %usage_insert O %usage_update O %'
                         else trigger_states like 'usage_delete A %usage_insert A %usage_update A %' end;

alter table usage.state drop constraint state_lookback;
alter table usage.state drop constraint state_capture_mode;
alter table usage.state add constraint state_capture_mode check (capture_mode in ('always', 'origin'));
alter table usage.state drop column lookback_days;
comment on column usage.state.capture_mode is 'always: triggers are ENABLE ALWAYS; origin: late_change is itself subscribed to.';
