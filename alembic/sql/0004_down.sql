-- Back to 0003, first part: what only 0004 has goes, and the rollups become wide tables again. Functions follow as 0001 to 0003
-- have them.

do $$ begin
    if exists (select from usage.state s where s.capture_mode = 'lookback') then
        raise object_not_in_prerequisite_state using
            message = 'the source is attached by lookback, which the earlier revision does not know: run aggregator detach first';
    end if;
end $$;

drop function usage.hourly_gain(integer, integer);
drop function usage.daily_series(timestamptz, timestamptz, uuid, text);
drop function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean);
drop function usage.hours_sql(usage.window_parts, boolean, uuid, text);
drop function usage.days_sql(usage.window_parts, boolean, boolean, uuid, text);
drop function usage.window_events_sql(usage.window_parts, uuid);
drop function usage.hour_fact_sql(text, timestamptz, timestamptz, integer, integer[], text, text);
drop function usage.fact_sql(text, date, date, integer, integer[], text);
drop function usage.keys_of(uuid, boolean);
drop function usage.lookback_reason(date);
drop function usage.cut_window(timestamptz, timestamptz);
drop function usage.is_of_hours(date, text, timestamptz);
drop function usage.with_hours(usage.window_parts, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz);
drop function usage.measured_sql(integer[], timestamptz[], timestamptz[], timestamptz, timestamptz, text, uuid);
drop function usage.range_sql(timestamptz, timestamptz);
drop function usage.event_between(timestamptz, timestamptz);
drop function usage.next_event(timestamptz, timestamptz);
drop function usage.nth_event(timestamptz, timestamptz, bigint);
drop function usage.distributed_sums(timestamptz, timestamptz);
alter function usage.event() parallel unsafe;
alter function usage.collection() parallel unsafe;

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

alter table usage.state drop column distributed;
alter table usage.state drop constraint state_lookback;
alter table usage.state drop constraint state_capture_mode;
alter table usage.state add constraint state_capture_mode check (capture_mode in ('always', 'origin'));
alter table usage.state drop column lookback_days;
comment on column usage.state.capture_mode is 'always: triggers are ENABLE ALWAYS; origin: late_change is itself subscribed to.';

alter view usage.daily rename to narrow_daily;
alter view usage.daily_collection rename to narrow_daily_collection;
alter view usage.monthly rename to narrow_monthly;
alter view usage.monthly_collection rename to narrow_monthly_collection;
create table usage.daily (
    day              date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    job_type         text    collate "C",
    model_level      text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_key unique nulls not distinct (collection_id, day, resource_type, job_type, model_level)
) with (fillfactor = 90);
insert into usage.daily (day, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value, rejected_count)
select v.day, v.collection_id, v.resource_type, v.job_type, v.model_level, v.event_count, v.total_value, v.secondary_value, v.rejected_count
  from usage.narrow_daily v
 order by v.day;
alter table usage.daily replica identity full;
create index daily_day on usage.daily (day);
create table usage.daily_collection (
    day              date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_collection_key unique nulls not distinct (collection_id, day, resource_type)
) with (fillfactor = 85);
insert into usage.daily_collection (day, collection_id, resource_type, event_count, total_value, secondary_value, rejected_count)
select v.day, v.collection_id, v.resource_type, v.event_count, v.total_value, v.secondary_value, v.rejected_count
  from usage.narrow_daily_collection v
 order by v.day;
alter table usage.daily_collection replica identity full;
create index daily_collection_day on usage.daily_collection (day);
create table usage.monthly (
    month            date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    job_type         text    collate "C",
    model_level      text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_key unique nulls not distinct (collection_id, month, resource_type, job_type, model_level)
) with (fillfactor = 80);
insert into usage.monthly (month, collection_id, resource_type, job_type, model_level, event_count, total_value, secondary_value, rejected_count)
select v.month, v.collection_id, v.resource_type, v.job_type, v.model_level, v.event_count, v.total_value, v.secondary_value, v.rejected_count
  from usage.narrow_monthly v
 order by v.month;
alter table usage.monthly replica identity full;
create index monthly_month on usage.monthly (month);
create table usage.monthly_collection (
    month            date    not null,
    collection_id    uuid,
    resource_type    text    collate "C",
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_collection_key unique nulls not distinct (collection_id, month, resource_type)
) with (fillfactor = 80);
insert into usage.monthly_collection (month, collection_id, resource_type, event_count, total_value, secondary_value, rejected_count)
select v.month, v.collection_id, v.resource_type, v.event_count, v.total_value, v.secondary_value, v.rejected_count
  from usage.narrow_monthly_collection v
 order by v.month;
alter table usage.monthly_collection replica identity full;
create index monthly_collection_month on usage.monthly_collection (month);
alter table usage.monthly add constraint monthly_month check (month = usage.month_of(month));
comment on constraint monthly_month on usage.monthly is 'A month is named by its first day: what lies elsewhere in it would count twice.';
alter table usage.monthly_collection add constraint monthly_collection_month check (month = usage.month_of(month));
comment on constraint monthly_collection_month on usage.monthly_collection is
'A month is named by its first day: what lies elsewhere in it would count twice.';

do $$
declare
    statement text;
begin
    for statement in
        select format('comment on table usage.%I is %L', v.name, obj_description(c.oid, 'pg_class'))
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_class c on c.oid = ('usage.narrow_' || v.name)::regclass
        union all
        select format('comment on column usage.%I.%I is %L', v.name, a.attname, col_description(a.attrelid, a.attnum))
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_attribute a on a.attrelid = ('usage.narrow_' || v.name)::regclass and a.attnum > 0
         where col_description(a.attrelid, a.attnum) is not null
        union all
        select format('grant %s on usage.%I to %s%s', g.privilege_type, v.name,
                      case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                      case when g.is_grantable then ' with grant option' else '' end)
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name),
               unnest(array['narrow_' || v.name, v.name || '_fact']) r (relation)
          join pg_class c on c.oid = ('usage.' || r.relation)::regclass, aclexplode(c.relacl) g
         where g.grantee <> c.relowner and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    loop
        execute statement;
    end loop;
end $$;
