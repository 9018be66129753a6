-- Hourly rollup, opt-in: the edges of windows by hours, and days of other time zones. Empty while it is off.

-- Hours -----------------------------------------------------------------------------------------------------------------

-- Whole hours of UTC. Two days at either end of years 1-9999 have none, so that no time zone has an hour outside them.
create function usage.hour_of(at timestamptz) returns timestamptz
language sql immutable parallel safe
return case when at >= '0001-01-03 00:00:00+00' and at < '9999-12-30 00:00:00+00'
            then pg_catalog.date_bin('1 hour', at, '2000-01-01 00:00:00+00') end;
comment on function usage.hour_of(timestamptz) is 'The whole UTC hour that an instant lies in, by its first instant; null outside of years 1-9999 and two days within them.';

create function usage.hours_to(at timestamptz) returns timestamptz
language sql immutable parallel safe
return pg_catalog.date_bin('1 hour', greatest('0001-01-03 00:00:00+00', least(at, '9999-12-30 00:00:00+00')), '2000-01-01 00:00:00+00');
comment on function usage.hours_to(timestamptz) is 'Where the whole hours below an instant end.';

create function usage.hours_from(at timestamptz) returns timestamptz
language sql immutable parallel safe
return case when usage.hours_to(at) >= at then usage.hours_to(at) else least(usage.hours_to(at) + interval '1 hour', '9999-12-30 00:00:00+00') end;
comment on function usage.hours_from(timestamptz) is 'Where the whole hours from an instant on begin.';

create table usage.hourly_fact (
    hour             timestamptz not null,
    key_id           integer     not null,
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    rejected_count   bigint      not null,
    constraint hourly_fact_pkey primary key (hour, key_id),
    constraint hourly_fact_hour check (hour = usage.hour_of(hour))
) with (fillfactor = 90);
create table usage.hourly_collection_fact (
    hour             timestamptz not null,
    key_id           integer     not null,
    event_count      bigint      not null,
    total_value      numeric     not null,
    secondary_value  numeric     not null,
    rejected_count   bigint      not null,
    constraint hourly_collection_fact_pkey primary key (hour, key_id),
    constraint hourly_collection_fact_hour check (hour = usage.hour_of(hour))
) with (fillfactor = 90);
comment on table usage.hourly_fact is 'Sums by hour and key, from usage.state.hourly_since on; usage.hourly shows them with their keys.';
comment on table usage.hourly_collection_fact is
'Sums by hour, collection and resource type, from usage.state.hourly_since on; usage.hourly_collection shows them with their keys.';
comment on constraint hourly_fact_hour on usage.hourly_fact is 'An hour is named by its first instant: what lies elsewhere in it would be missed.';
comment on constraint hourly_collection_fact_hour on usage.hourly_collection_fact is
'An hour is named by its first instant: what lies elsewhere in it would be missed.';

create view usage.hourly as
select f.hour, k.collection_id, k.resource_type, k.job_type, k.model_level,
       f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.hourly_fact f
  join usage.key k on k.id = f.key_id;
create view usage.hourly_collection as
select f.hour, k.collection_id, k.resource_type, f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.hourly_collection_fact f
  join usage.key k on k.id = f.key_id;
comment on view usage.hourly is
'Rollup by hour and key, of hours from usage.state.hourly_since on, as of usage.freshness; empty unless aggregator attach --hourly was run.';
comment on view usage.hourly_collection is
'Rollup by hour, collection and resource type, of hours from usage.state.hourly_since on, as of usage.freshness; empty unless aggregator attach --hourly was run.';
do $$
declare
    relation text;
begin
    foreach relation in array array['hourly_fact', 'hourly_collection_fact', 'hourly', 'hourly_collection'] loop
        execute format('comment on column usage.%I.hour is %L', relation, 'First instant of the hour, a whole hour of UTC.');
        if relation like '%fact' then
            execute format('comment on column usage.%I.key_id is %L', relation, 'usage.key.id'
                           || case when relation like '%collection%' then ' of a key without job type and model level.' else '.' end);
        else
            execute format('comment on column usage.%I.collection_id is %L', relation, 'Collection, or null.');
            execute format('comment on column usage.%I.resource_type is %L', relation, 'Resource type, or null; long text is abridged.');
        end if;
        execute format('comment on column usage.%I.event_count is %L', relation, 'Number of events.');
        execute format('comment on column usage.%I.total_value is %L', relation, 'Exact sum of the type''s value, in usage.metric.unit.');
        execute format('comment on column usage.%I.secondary_value is %L', relation, 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.');
        execute format('comment on column usage.%I.rejected_count is %L', relation, 'Events with a value that is no number: counted, adding 0.');
    end loop;
end $$;
comment on column usage.hourly.job_type is 'detail->>job_type, or null; long text is abridged.';
comment on column usage.hourly.model_level is 'detail->>model_level, or null; long text is abridged.';

alter table usage.state add column hourly_since timestamptz;
comment on column usage.state.hourly_since is
'From this hour on the hourly rollup holds what the daily one does; -infinity: of all hours; null: it is off. A fill moves it down.';
alter table usage.state add constraint state_hourly_since check (not isfinite(hourly_since) or hourly_since = usage.hour_of(hourly_since));
comment on constraint state_hourly_since on usage.state is 'It is a whole hour.';

alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup
    check (rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'daily_total', 'hourly', 'hourly_collection'));
comment on column usage.restatement.bucket is 'The day (or the month''s first day) that was changed; for the hourly rollup the day of its hours.';

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
                             'hourly_fact', 'hourly_collection_fact', 'key', 'late_change',
                             'trailing', 'monthly_ranking')
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
