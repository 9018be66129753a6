-- Back to 0013, whose readers have been put back.

drop function usage.planned_daily_series(usage.window_parts, jsonb);
drop function usage.total_sql(usage.window_parts, text);
drop function usage.with_totals(usage.window_parts);
drop function usage.with_late_of(usage.window_parts, timestamptz[], timestamptz[], timestamptz[], timestamptz[]);
alter type usage.window_parts drop attribute hour_days, drop attribute mark_days;
alter table usage.six_hours drop constraint six_hours_has_totals;
drop index usage.six_hours_unmarked;
create index six_hours_event_count on usage.six_hours (event_count) where marks is null;
comment on index usage.six_hours_event_count is 'What is to be marked: usage.six_hours has a row for each six hours of history.';
alter table usage.six_hours drop column has_totals;
drop table usage.mark_total;
drop function usage.quarter_hour_of(timestamptz);
alter table usage.state drop column has_hourly_total;
drop trigger keep_hourly_total_insert on usage.hourly_collection_fact;
drop trigger keep_hourly_total_update on usage.hourly_collection_fact;
drop trigger keep_hourly_total_delete on usage.hourly_collection_fact;
drop trigger keep_hourly_total_truncate on usage.hourly_collection_fact;
drop function usage.keep_hourly_total();
drop table usage.hourly_total;

delete from usage.restatement where rollup = 'hourly_total';
alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup check (
    rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'quarterly_collection', 'daily_total', 'hourly', 'hourly_collection'));
