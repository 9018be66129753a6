-- A rollup of quarters, by collection and resource type: a year to the second is five months and quarters, not twelve months.

create function usage.quarter_of(day date) returns date
language sql immutable parallel safe
return case when pg_catalog.isfinite(day) then pg_catalog.date_trunc('quarter', day::timestamp)::date else day end;
comment on function usage.quarter_of(date) is 'First day of a day''s quarter; the end buckets are quarters of their own.';

create function usage.next_quarter(quarter date) returns date
language sql immutable parallel safe
return case when quarter = '-infinity' then '0001-01-01'::date
            when quarter >= '9999-10-01' then 'infinity'::date
            else (quarter::timestamp + interval '3 months')::date end;
comment on function usage.next_quarter(date) is 'The quarterly bucket after a quarter.';

-- The rollup -----------------------------------------------------------------------------------------------------------------

create table usage.quarterly_collection_fact (
    quarter          date    not null,
    key_id           integer not null,
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint quarterly_collection_fact_pkey primary key (quarter, key_id),
    constraint quarterly_collection_fact_quarter check (quarter = usage.quarter_of(quarter))
) with (fillfactor = 80);
comment on table usage.quarterly_collection_fact is
'Sums by local quarter, collection and resource type; usage.quarterly_collection shows them with their keys. Kept by a trigger on usage.monthly_collection_fact.';
comment on constraint quarterly_collection_fact_quarter on usage.quarterly_collection_fact is
'A quarter is named by its first day: what lies elsewhere in it would count twice.';
create view usage.quarterly_collection as
select f.quarter, k.collection_id, k.resource_type, f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.quarterly_collection_fact f
  join usage.key k on k.id = f.key_id;
comment on view usage.quarterly_collection is
'Rollup by local quarter, collection and resource type, as of usage.freshness.';
do $$
declare
    relation text;
begin
    foreach relation in array array['quarterly_collection_fact', 'quarterly_collection'] loop
        execute format('comment on column usage.%I.quarter is %L', relation,
                       'First day of the local quarter in the reporting zone; -infinity / infinity outside years 1-9999.');
        execute format('comment on column usage.%I.event_count is %L', relation, 'Number of events.');
        execute format('comment on column usage.%I.total_value is %L', relation, 'Exact sum of the type''s value, in usage.metric.unit.');
        execute format('comment on column usage.%I.secondary_value is %L', relation, 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.');
        execute format('comment on column usage.%I.rejected_count is %L', relation, 'Events with a value that is no number: counted, adding 0.');
    end loop;
end $$;
comment on column usage.quarterly_collection_fact.key_id is 'usage.key.id of a key without job type and model level.';
comment on column usage.quarterly_collection.collection_id is 'Collection, or null.';
comment on column usage.quarterly_collection.resource_type is 'Resource type, or null; long text is abridged.';

-- By a trigger, whoever changes a month: also a release that knows of no quarters and goes on running behind this migration.
create function usage.keep_quarters() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate usage.quarterly_collection_fact;
        return null;
    end if;
    execute format($sql$
        insert into usage.quarterly_collection_fact as f (quarter, key_id, event_count, total_value, secondary_value, rejected_count)
        select usage.quarter_of(m.month), m.key_id, sum(m.event_count), sum(m.total_value), sum(m.secondary_value), sum(m.rejected_count)
          from (%s) m (month, key_id, event_count, total_value, secondary_value, rejected_count)
         group by 1, 2
         order by 1, 2
            on conflict (quarter, key_id) do update
           set event_count = f.event_count + excluded.event_count,
               total_value = f.total_value + excluded.total_value,
               secondary_value = f.secondary_value + excluded.secondary_value,
               rejected_count = f.rejected_count + excluded.rejected_count$sql$,
        concat_ws(' union all ',
            case when tg_op <> 'DELETE' then
                'select n.month, n.key_id, n.event_count, n.total_value, n.secondary_value, n.rejected_count from new_months n' end,
            case when tg_op <> 'INSERT' then
                'select o.month, o.key_id, -o.event_count, -o.total_value, -o.secondary_value, -o.rejected_count from old_months o' end));
    if tg_op = 'DELETE' then  -- what became nothing is deleted in the month, too
        delete from usage.quarterly_collection_fact f
         using old_months o
         where f.quarter = usage.quarter_of(o.month) and f.key_id = o.key_id
           and f.event_count = 0 and f.total_value = 0 and f.secondary_value = 0 and f.rejected_count = 0;
    end if;
    return null;
end $$;
comment on function usage.keep_quarters() is 'Trigger on usage.monthly_collection_fact: adds to quarters what is added to their months.';

create trigger keep_quarters_insert after insert on usage.monthly_collection_fact
    referencing new table as new_months for each statement execute function usage.keep_quarters();
create trigger keep_quarters_update after update on usage.monthly_collection_fact
    referencing new table as new_months old table as old_months for each statement execute function usage.keep_quarters();
create trigger keep_quarters_delete after delete on usage.monthly_collection_fact
    referencing old table as old_months for each statement execute function usage.keep_quarters();
create trigger keep_quarters_truncate after truncate on usage.monthly_collection_fact
    for each statement execute function usage.keep_quarters();

insert into usage.quarterly_collection_fact
select usage.quarter_of(m.month), m.key_id, sum(m.event_count), sum(m.total_value), sum(m.secondary_value), sum(m.rejected_count)
  from usage.monthly_collection_fact m
 group by 1, 2
 order by 1, 2;
analyze usage.quarterly_collection_fact;

-- A reader whose snapshot is older than this migration would find no quarters: it sees the default.
alter table usage.state add column has_quarters boolean not null default false;
comment on column usage.state.has_quarters is 'The quarterly rollup is filled. False in a snapshot from before it was.';
update usage.state set has_quarters = true;

-- Verification names what it repairs.
alter table usage.restatement drop constraint restatement_rollup;
alter table usage.restatement add constraint restatement_rollup check (
    rollup in ('daily', 'monthly', 'daily_collection', 'monthly_collection', 'quarterly_collection', 'daily_total', 'hourly', 'hourly_collection'));
comment on column usage.restatement.bucket is
'The day (or the month''s or quarter''s first day) that was changed; for the hourly rollup the day of its hours.';

-- Whoever reads and repairs months reads and repairs quarters, until deploy/roles.sql is run again.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant %s on usage.%I to %s%s', g.privilege_type, replace(c.relname, 'monthly', 'quarterly'),
                      case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                      case when g.is_grantable then ' with grant option' else '' end)
          from pg_class c, aclexplode(c.relacl) g
         where c.oid in ('usage.monthly_collection_fact'::regclass, 'usage.monthly_collection'::regclass) and g.grantee <> c.relowner
           and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
        union all
        select format('grant execute on function %s to %s%s', new.oid::regprocedure,
                      case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc old
          join pg_proc new on new.pronamespace = old.pronamespace and new.proname in ('quarter_of', 'next_quarter'),
               aclexplode(old.proacl) a
         where old.oid = 'usage.next_month(date)'::regprocedure and a.grantee not in (0, old.proowner)
    loop
        execute statement;
    end loop;
end $$;

-- Readers ----------------------------------------------------------------------------------------------------------------------

-- As before, and of quarters.
create or replace function usage.fact_sql(fact text, from_bucket date, to_bucket date, sign integer, keys integer[], bucket text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    column_is constant text := case when fact like 'quarterly%' then 'quarter' when fact like 'monthly%' then 'month' else 'day' end;
    months    constant integer := case column_is when 'quarter' then 3 when 'month' then 1 end;  -- of a bucket; null: it is a day
    bucket_is constant text := coalesce(replace(bucket, '*', 'f.' || column_is) || ' as bucket, ', '');
    buckets   integer;
    sums      constant text := case when sign < 0 then '-f.event_count as event_count, -f.total_value as total_value, -f.secondary_value as secondary_value'
                                    else 'f.event_count, f.total_value, f.secondary_value' end;
begin
    if from_bucket is null or to_bucket is null or from_bucket >= to_bucket then
        return null;
    end if;
    if keys is not null and isfinite(from_bucket) and isfinite(to_bucket) and to_bucket - from_bucket < 40000 then
        buckets := case when months is not null then ((extract(year from to_bucket) - extract(year from from_bucket)) * 12
                                                      + extract(month from to_bucket) - extract(month from from_bucket)) / months
                        else to_bucket - from_bucket end;
        if buckets::bigint * cardinality(keys) <= 20000 then
            return format('select %sf.key_id, %s from generate_series(0, %s) b (n), usage.%I f where f.%I = %s and f.key_id = any (%L::integer[])',
                          bucket_is, sums, buckets - 1, fact, column_is,
                          case when months is not null then format('(%L::timestamp + b.n * interval ''%s months'')::date', from_bucket, months)
                               else format('%L::date + b.n', from_bucket) end, keys);
        end if;
    end if;
    return format('select %sf.key_id, %s from usage.%I f where f.%I >= %L::date and f.%I < %L::date%s',
                  bucket_is, sums, fact, column_is, from_bucket, column_is, to_bucket,
                  case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end);
end $$;
comment on function usage.fact_sql(text, date, date, integer, integer[], text) is
'A statement that reads the rows of a rollup in [from_bucket, to_bucket), of some keys or (null) all, with a sign; null: there are none to read. bucket: an expression, with * for the row''s day, month or quarter; null: no column.';

-- As before, but of months that make whole quarters the quarters, where rows need not be told apart.
create or replace function usage.days_sql(p usage.window_parts, by_key boolean, by_months boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    level constant text := case when by_key then '_fact' else '_collection_fact' end;
    keys  constant integer[] := usage.keys_of(collection, by_key);
    -- No rollup row lies past the frontier's day.
    last       constant date := usage.next_day(usage.local_day(p.frontier, p.zone));
    last_month constant date := least(p.month_to, usage.next_month(usage.month_of(last)));
    quarter_from date := p.month_to;
    quarter_to   date := p.month_to;
begin
    if not by_months then
        return usage.fact_sql('daily' || level, p.day_from, least(p.day_to, last), 1, keys, bucket);
    end if;
    if not by_key and coalesce(position('*' in bucket) = 0, true) and (select s.has_quarters from usage.state s) then
        quarter_from := usage.quarter_of(p.month_from);
        if quarter_from < p.month_from then
            quarter_from := usage.next_quarter(quarter_from);
        end if;
        quarter_to := usage.quarter_of(p.month_to);
        if quarter_from >= quarter_to then
            quarter_from := p.month_to;
            quarter_to := p.month_to;
        end if;
    end if;
    return nullif(concat_ws(' union all ',
        usage.fact_sql('quarterly' || level, quarter_from, least(quarter_to, usage.next_quarter(usage.quarter_of(last))), 1, keys, bucket),
        usage.fact_sql('monthly' || level, p.month_from, least(quarter_from, last_month), 1, keys, bucket),
        usage.fact_sql('monthly' || level, quarter_to, last_month, 1, keys, bucket),
        usage.fact_sql('daily' || level, p.left_from, least(p.left_to, last), p.left_sign, keys, bucket),
        usage.fact_sql('daily' || level, p.right_from, least(p.right_to, last), p.right_sign, keys, bucket)), '');
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
                             'quarterly_collection_fact', 'hourly_fact', 'hourly_collection_fact', 'key', 'late_change',
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

select usage.restore_grants();
