-- Back to 0009, whose readers have been put back.

alter table usage.state drop column has_quarters;
drop trigger keep_quarters_insert on usage.monthly_collection_fact;
drop trigger keep_quarters_update on usage.monthly_collection_fact;
drop trigger keep_quarters_delete on usage.monthly_collection_fact;
drop trigger keep_quarters_truncate on usage.monthly_collection_fact;
drop function usage.keep_quarters();
drop view usage.quarterly_collection;
drop table usage.quarterly_collection_fact;
drop function usage.next_quarter(date);
drop function usage.quarter_of(date);

delete from usage.restatement where rollup = 'quarterly_collection';
alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup
    check (rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'daily_total', 'hourly', 'hourly_collection'));
comment on column usage.restatement.bucket is 'The day (or the month''s first day) that was changed; for the hourly rollup the day of its hours.';
