-- Narrow rollups: a key is stored once and known by its number, so a row takes 68 bytes for 105 and its index entry 21
-- for 104. Views bear the names and columns that the rollups had. Readers and folds are given statements made for them.

-- Keys --------------------------------------------------------------------------------------------------------------

create table usage.key (
    id              integer not null,
    collection_id   uuid,
    resource_type   text collate "C",
    job_type        text collate "C",
    model_level     text collate "C",
    collection_key  integer not null,
    constraint key_pkey primary key (id)
);
comment on table usage.key is 'Every key that the rollups have had, by number. Rows are added by folds, one at a time, which number them; they are never changed.';
comment on column usage.key.id is 'The number that the rollups know the key by.';
comment on column usage.key.collection_id is 'Collection, or null.';
comment on column usage.key.resource_type is 'Resource type, or null; long text is abridged.';
comment on column usage.key.job_type is 'detail->>job_type, or null; long text is abridged.';
comment on column usage.key.model_level is 'detail->>model_level, or null; long text is abridged.';
comment on column usage.key.collection_key is
'The number of the key of the same collection and resource type without job type and model level: its own, if it has none.';

-- As a value, in which null equals null: so that keys can be looked up by an index, or a hash join.
create type usage.key_columns as (
    collection_id  uuid,
    resource_type  text collate "C",
    job_type       text collate "C",
    model_level    text collate "C"
);
comment on type usage.key_columns is 'The four columns of a key as one value: null equals null in it.';
create unique index key_columns_key on usage.key ((row(collection_id, resource_type, job_type, model_level)::usage.key_columns));
create index key_collection on usage.key (collection_id);

-- Facts -------------------------------------------------------------------------------------------------------------

-- A fill factor below 100 keeps the running day's updates on their page (HOT), so rows stay in order of days. The one
-- index leads with the day, so new days are appended to it; one collection is looked up day by day.
create table usage.daily_fact (
    day              date    not null,
    key_id           integer not null,
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_fact_pkey primary key (day, key_id)
) with (fillfactor = 90);
create table usage.daily_collection_fact (
    day              date    not null,
    key_id           integer not null,
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint daily_collection_fact_pkey primary key (day, key_id)
) with (fillfactor = 90);
create table usage.monthly_fact (
    month            date    not null,
    key_id           integer not null,
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_fact_pkey primary key (month, key_id),
    constraint monthly_fact_month check (month = usage.month_of(month))
) with (fillfactor = 80);
create table usage.monthly_collection_fact (
    month            date    not null,
    key_id           integer not null,
    event_count      bigint  not null,
    total_value      numeric not null,
    secondary_value  numeric not null,
    rejected_count   bigint  not null,
    constraint monthly_collection_fact_pkey primary key (month, key_id),
    constraint monthly_collection_fact_month check (month = usage.month_of(month))
) with (fillfactor = 80);

insert into usage.key (id, collection_id, resource_type, collection_key)
select row_number() over (), k.collection_id, k.resource_type, row_number() over ()
  from (select d.collection_id, d.resource_type from usage.daily d
        union select c.collection_id, c.resource_type from usage.daily_collection c
        union select m.collection_id, m.resource_type from usage.monthly m
        union select m.collection_id, m.resource_type from usage.monthly_collection m) k;
insert into usage.key (id, collection_id, resource_type, job_type, model_level, collection_key)
select (select max(n.id) from usage.key n) + row_number() over (), x.collection_id, x.resource_type, x.job_type, x.model_level, k.id
  from (select d.collection_id, d.resource_type, d.job_type, d.model_level from usage.daily d
        union select m.collection_id, m.resource_type, m.job_type, m.model_level from usage.monthly m) x
  join usage.key k on row(k.collection_id, k.resource_type, null, null)::usage.key_columns
                    = row(x.collection_id, x.resource_type, null, null)::usage.key_columns
 where x.job_type is not null or x.model_level is not null;
analyze usage.key;

insert into usage.daily_fact
select d.day, k.id, d.event_count, d.total_value, d.secondary_value, d.rejected_count
  from usage.daily d
  join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                    = row(d.collection_id, d.resource_type, d.job_type, d.model_level)::usage.key_columns
 order by 1, 2;
insert into usage.daily_collection_fact
select d.day, k.id, d.event_count, d.total_value, d.secondary_value, d.rejected_count
  from usage.daily_collection d
  join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                    = row(d.collection_id, d.resource_type, null, null)::usage.key_columns
 order by 1, 2;
-- A row that somebody moved off its month's first day is left behind: verify finds that it is missing.
insert into usage.monthly_fact
select m.month, k.id, m.event_count, m.total_value, m.secondary_value, m.rejected_count
  from usage.monthly m
  join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                    = row(m.collection_id, m.resource_type, m.job_type, m.model_level)::usage.key_columns
 where m.month = usage.month_of(m.month)
 order by 1, 2;
insert into usage.monthly_collection_fact
select m.month, k.id, m.event_count, m.total_value, m.secondary_value, m.rejected_count
  from usage.monthly_collection m
  join usage.key k on row(k.collection_id, k.resource_type, k.job_type, k.model_level)::usage.key_columns
                    = row(m.collection_id, m.resource_type, null, null)::usage.key_columns
 where m.month = usage.month_of(m.month)
 order by 1, 2;

analyze usage.daily_fact, usage.daily_collection_fact, usage.monthly_fact, usage.monthly_collection_fact;

comment on table usage.daily_fact is 'Sums by local day and key; usage.daily shows them with their keys.';
comment on table usage.daily_collection_fact is
'Sums by local day, collection and resource type; usage.daily_collection shows them with their keys.';
comment on table usage.monthly_fact is 'Sums by local month and key; usage.monthly shows them with their keys.';
comment on table usage.monthly_collection_fact is
'Sums by local month, collection and resource type; usage.monthly_collection shows them with their keys.';
comment on constraint monthly_fact_month on usage.monthly_fact is
'A month is named by its first day: what lies elsewhere in it would count twice.';
comment on constraint monthly_collection_fact_month on usage.monthly_collection_fact is
'A month is named by its first day: what lies elsewhere in it would count twice.';
do $$
declare
    fact text;
begin
    foreach fact in array array['daily_fact', 'monthly_fact', 'daily_collection_fact', 'monthly_collection_fact'] loop
        execute format('comment on column usage.%I.%I is %L', fact, case when fact like 'daily%' then 'day' else 'month' end,
                       case when fact like 'daily%' then 'Local day' else 'First day of the local month' end
                       || ' in the reporting zone; -infinity / infinity outside years 1-9999.');
        execute format('comment on column usage.%I.key_id is %L', fact, 'usage.key.id'
                       || case when fact like '%collection%' then ' of a key without job type and model level.' else '.' end);
        execute format('comment on column usage.%I.event_count is %L', fact, 'Number of events.');
        execute format('comment on column usage.%I.total_value is %L', fact, 'Exact sum of the type''s value, in usage.metric.unit.');
        execute format('comment on column usage.%I.secondary_value is %L', fact, 'Exact sum of the type''s secondary value, in usage.metric.secondary_unit.');
        execute format('comment on column usage.%I.rejected_count is %L', fact, 'Events with a value that is no number: counted, adding 0.');
    end loop;
end $$;

-- The names and columns that people and BI tools know ----------------------------------------------------------------------

alter table usage.daily rename to wide_daily;
alter table usage.daily_collection rename to wide_daily_collection;
alter table usage.monthly rename to wide_monthly;
alter table usage.monthly_collection rename to wide_monthly_collection;
create view usage.daily as
select f.day, k.collection_id, k.resource_type, k.job_type, k.model_level,
       f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.daily_fact f
  join usage.key k on k.id = f.key_id;
create view usage.daily_collection as
select f.day, k.collection_id, k.resource_type, f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.daily_collection_fact f
  join usage.key k on k.id = f.key_id;
create view usage.monthly as
select f.month, k.collection_id, k.resource_type, k.job_type, k.model_level,
       f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.monthly_fact f
  join usage.key k on k.id = f.key_id;
create view usage.monthly_collection as
select f.month, k.collection_id, k.resource_type, f.event_count, f.total_value, f.secondary_value, f.rejected_count
  from usage.monthly_collection_fact f
  join usage.key k on k.id = f.key_id;
-- Comments and the right to read are those of the tables; the right to write goes to what is written now.
do $$
declare
    statement text;
begin
    for statement in
        select format('comment on view usage.%I is %L', v.name, obj_description(c.oid, 'pg_class'))
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_class c on c.oid = ('usage.wide_' || v.name)::regclass
        union all
        select format('comment on column usage.%I.%I is %L', v.name, a.attname, col_description(a.attrelid, a.attnum))
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_attribute a on a.attrelid = ('usage.wide_' || v.name)::regclass and a.attnum > 0
         where col_description(a.attrelid, a.attnum) is not null
        union all
        select format('grant %s on usage.%I to %s%s', g.privilege_type,
                      case when g.privilege_type = 'SELECT' then v.name else v.name || '_fact' end,
                      case g.grantee when 0 then 'public' else g.grantee::regrole::text end,
                      case when g.is_grantable then ' with grant option' else '' end)
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_class c on c.oid = ('usage.wide_' || v.name)::regclass, aclexplode(c.relacl) g
         where g.grantee <> c.relowner and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
        union all  -- whoever could write could read for it
        select format('grant select on usage.%I to %s', v.name || '_fact', case g.grantee when 0 then 'public' else g.grantee::regrole::text end)
          from unnest(array['daily', 'daily_collection', 'monthly', 'monthly_collection']) v (name)
          join pg_class c on c.oid = ('usage.wide_' || v.name)::regclass, aclexplode(c.relacl) g
         where g.grantee <> c.relowner and g.privilege_type = 'INSERT'
        union all
        select format('grant select, insert on usage.key to %s', case g.grantee when 0 then 'public' else g.grantee::regrole::text end)
          from pg_class c, aclexplode(c.relacl) g
         where c.oid = 'usage.wide_daily'::regclass and g.grantee <> c.relowner and g.privilege_type = 'INSERT'
    loop
        execute statement;
    end loop;
end $$;

create or replace view usage.daily_live as
select l.day, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.day, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select d.day, d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day < (select usage.rolled_until())
                union all
                select p.day, p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.day, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric_definition m
    on m.resource_type = l.resource_type and l.day >= m.day_from and (m.day_to is null or l.day < m.day_to);

create or replace view usage.monthly_live as
select l.month, l.collection_id, usage.title_of(l.collection_id) as collection_title, l.resource_type, l.job_type, l.model_level,
       l.event_count, l.total_value, l.secondary_value, l.rejected_count, m.unit, m.secondary_unit
  from (select s.month, s.collection_id, s.resource_type, s.job_type, s.model_level,
               sum(s.event_count)::bigint as event_count, sum(s.total_value) as total_value,
               sum(s.secondary_value) as secondary_value, sum(s.rejected_count)::bigint as rejected_count
          from (select o.month, o.collection_id, o.resource_type, o.job_type, o.model_level,
                       o.event_count, o.total_value, o.secondary_value, o.rejected_count
                  from usage.monthly o
                 where o.month < (select usage.month_of(usage.rolled_until()))
                union all  -- of a month that is rolled up in part only, its days
                select usage.month_of(d.day), d.collection_id, d.resource_type, d.job_type, d.model_level,
                       d.event_count, d.total_value, d.secondary_value, d.rejected_count
                  from usage.daily d
                 where d.day >= (select usage.month_of(usage.rolled_until()))
                   and d.day < (select usage.rolled_until())
                union all
                select usage.month_of(p.day), p.collection_id, p.resource_type, p.job_type, p.model_level,
                       p.event_count, p.total_value, p.secondary_value, p.rejected_count
                  from usage.pending_sums() p) s
         group by s.month, s.collection_id, s.resource_type, s.job_type, s.model_level
        having sum(s.event_count) <> 0) l
  left join usage.metric_definition m
    on m.resource_type = l.resource_type and l.month >= m.day_from
   and (m.day_to is null or usage.next_month(l.month) <= m.day_to);
drop table usage.wide_daily, usage.wide_daily_collection, usage.wide_monthly, usage.wide_monthly_collection;

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
           and s.relname in ('daily_fact', 'daily_collection_fact', 'daily_total', 'monthly_fact', 'monthly_collection_fact', 'key', 'late_change',
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

-- Reading events ------------------------------------------------------------------------------------------------------

-- So that parallel workers may run what they are inlined into.
alter function usage.event() parallel safe;
alter function usage.collection() parallel safe;

create function usage.range_sql(since timestamptz, until timestamptz) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
begin
    return format('usage.event() e where e.created_at >= %L::timestamptz', since)
        || case when until is null then '' else format(' and e.created_at < %L::timestamptz', until) end;
end $$;
comment on function usage.range_sql(timestamptz, timestamptz) is
'What to write behind FROM for the events e of [since, until), until null: open.';

-- Text, for the values are made for the definitions of metrics that the snapshot has: a CASE costs less than a join, and
-- what is not asked for is not in the statement at all, so it costs no planning, and parallel workers may run it. Both
-- OFFSETs are fences: without them each expression below would be worked out anew wherever it is used. In quotes: a number
-- is cast to bigint, and the planner takes a cast for a limit that forbids parallel workers.
create function usage.measured_sql(
    head_sign integer, head_from timestamptz, head_to timestamptz,
    foot_sign integer, foot_from timestamptz, foot_to timestamptz,
    tail_from timestamptz, tail_to timestamptz,
    late_from timestamptz, late_to timestamptz, late_sign integer)
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    arms       text[] := '{}';
    value      text;
    secondary  text;
begin
    if head_from < head_to then
        arms := arms || format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               head_sign, usage.range_sql(head_from, head_to));
    end if;
    if foot_from < foot_to then
        arms := arms || format('select %s as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               foot_sign, usage.range_sql(foot_from, foot_to));
    end if;
    if tail_from is not null and coalesce(tail_from < tail_to, true) then
        arms := arms || format('select 1 as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail from %s',
                               usage.range_sql(tail_from, tail_to));
    end if;
    if late_from < late_to then
        arms := arms || (format('select l.sign::integer as sign, true as late, l.created_at, l.collection_id, l.resource_type, l.detail'
                                ' from usage.late_change l where l.created_at >= %L::timestamptz and l.created_at < %L::timestamptz',
                                late_from, late_to)
                         || case when late_sign is null then '' else format(' and l.sign = %s', late_sign) end);
    end if;
    if arms = '{}' then
        arms := array['select 1 as sign, false as late, null::timestamptz as created_at, null::uuid as collection_id,'
                      ' null::text as resource_type, null::jsonb as detail where false'];
    end if;

    -- "when type then value", of each type; where it has had several definitions, by the instant.
    select string_agg(format(' when %L then %s', m.resource_type, m.value), ''),
           string_agg(format(' when %L then %s', m.resource_type, m.secondary), '') filter (where m.any_secondary)
      into value, secondary
      from (select d.resource_type, bool_or(d.secondary_key is not null) as any_secondary,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.value_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.value_key), ''))
                   end as value,
                   case when count(*) = 1 and bool_and(d.valid_to is null) then format('r.detail -> %L::text', min(d.secondary_key))
                        else format('case%s end', string_agg(format(' when r.created_at %s then r.detail -> %L::text', d.span, d.secondary_key), ''))
                   end as secondary
              from (select f.resource_type, f.value_key, f.secondary_key, f.valid_to,
                           format('>= %L::timestamptz', f.valid_from)
                           || case when f.valid_to is null then '' else format(' and r.created_at < %L::timestamptz', f.valid_to) end as span
                      from usage.metric_definition f) d
             group by d.resource_type) m;

    return format($sql$(
select n.sign, n.late, n.created_at, n.collection_id,
       usage.key_text(n.resource_type) collate "C" as resource_type,
       usage.key_text(n.job_type) collate "C" as job_type,
       usage.key_text(n.model_level) collate "C" as model_level,
       usage.in_bounds(n.value_number) as value,
       usage.in_bounds(n.secondary_number) as secondary,
       usage.is_rejected(n.value, usage.in_bounds(n.value_number))
           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number)) as rejected
  from (select j.*, usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number
          from (select r.sign, r.late, r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type, r.detail ->> 'model_level' as model_level,
                       %s as value, %s as secondary
                  from (%s) r
                offset '0') j
        offset '0') n)$sql$,
        coalesce('case r.resource_type collate "C"' || value || ' end', 'null::jsonb'),
        coalesce('case r.resource_type collate "C"' || secondary || ' end', 'null::jsonb'), array_to_string(arms, ' union all '));
end $$;
comment on function usage.measured_sql(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer) is
'What to write in FROM for the signed events of some ranges with their key and values: up to three ranges of raw events, each with a sign (null bounds: none; tail_to null: open), and one of late changes (late_sign null: both signs). The metric expression''s one home, for folds, reads and verify.';

create or replace function usage.pending_sums()
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off
as $$
declare
    top  timestamptz := usage.effective_frontier();
    zone text := (select s.time_zone from usage.state s);
begin
    return query execute format($query$
        select usage.local_day(e.created_at, $1), e.collection_id, e.resource_type, e.job_type, e.model_level,
               sum(e.sign)::bigint,
               coalesce(sum(usage.signed(e.sign, e.value)), 0),
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
               coalesce(sum(e.sign) filter (where e.rejected), 0)::bigint
          from %s e
         group by 1, 2, 3, 4, 5
    $query$, usage.measured_sql(null, null, null, null, null, null, top, null, '-infinity', top, null))
    using zone;
end $$;

drop function usage.measured(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer);

-- Reading rollups -----------------------------------------------------------------------------------------------------

-- One collection is looked up bucket by bucket, for the index leads with the bucket; where there are too many buckets or
-- keys for that to pay, or end buckets that cannot be counted, the range is read and the keys are picked out.
create function usage.fact_sql(fact text, from_bucket date, to_bucket date, sign integer, keys integer[], bucket text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp set datestyle = 'ISO, YMD'
as $$
declare
    of_months constant boolean := fact like 'monthly%';
    column_is constant text := case when of_months then 'month' else 'day' end;
    buckets   integer;
    sums      constant text := case when sign < 0 then '-f.event_count as event_count, -f.total_value as total_value, -f.secondary_value as secondary_value'
                                    else 'f.event_count, f.total_value, f.secondary_value' end;
begin
    if from_bucket is null or to_bucket is null or from_bucket >= to_bucket then
        return null;
    end if;
    if keys is not null and isfinite(from_bucket) and isfinite(to_bucket) and to_bucket - from_bucket < 40000 then
        buckets := case when of_months then (extract(year from to_bucket) - extract(year from from_bucket)) * 12
                                            + extract(month from to_bucket) - extract(month from from_bucket)
                        else to_bucket - from_bucket end;
        if buckets::bigint * cardinality(keys) <= 20000 then
            return format('select %s as bucket, f.key_id, %s from generate_series(0, %s) b (n), usage.%I f where f.%I = %s and f.key_id = any (%L::integer[])',
                          replace(bucket, '*', 'f.' || column_is), sums, buckets - 1, fact, column_is,
                          case when of_months then format('(%L::timestamp + b.n * interval ''1 month'')::date', from_bucket)
                               else format('%L::date + b.n', from_bucket) end, keys);
        end if;
    end if;
    return format('select %s as bucket, f.key_id, %s from usage.%I f where f.%I >= %L::date and f.%I < %L::date%s',
                  replace(bucket, '*', 'f.' || column_is), sums, fact, column_is, from_bucket, column_is, to_bucket,
                  case when keys is null then '' else format(' and f.key_id = any (%L::integer[])', keys) end);
end $$;
comment on function usage.fact_sql(text, date, date, integer, integer[], text) is
'A statement that reads the rows of a rollup in [from_bucket, to_bucket), of some keys or (null) all, with a sign; null: there are none to read. bucket: an expression, with * for the row''s day or month.';

-- Late changes are looked for first: mostly there is none, and without them whole days need no events at all.
create function usage.window_events_sql(p usage.window_parts) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    any_late constant boolean := exists (select from usage.late_change l where l.created_at >= p.late_from and l.created_at < p.late_to);
begin
    if any_late or p.head_from < p.head_to or p.foot_from < p.foot_to or p.tail_from is not null then
        return usage.measured_sql(p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to, p.tail_from, p.tail_to,
                                  case when any_late then p.late_from end, case when any_late then p.late_to end, null);
    end if;
    return null;
end $$;
comment on function usage.window_events_sql(usage.window_parts) is
'What to write in FROM for the events of a window that are not in its whole days; null: there are none to read.';

create function usage.days_sql(p usage.window_parts, by_key boolean, by_months boolean, collection uuid, bucket text) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    level constant text := case when by_key then '_fact' else '_collection_fact' end;
    keys  constant integer[] := case when collection is not null then
        array(select distinct case when by_key then k.id else k.collection_key end from usage.key k where k.collection_id = collection) end;
    -- No rollup row lies past the frontier's day.
    last  constant date := usage.next_day(usage.local_day(p.frontier, p.zone));
begin
    return case
        when by_months then nullif(concat_ws(' union all ',
            usage.fact_sql('monthly' || level, p.month_from, least(p.month_to, usage.next_month(usage.month_of(last))), 1, keys, bucket),
            usage.fact_sql('daily' || level, p.left_from, least(p.left_to, last), p.left_sign, keys, bucket),
            usage.fact_sql('daily' || level, p.right_from, least(p.right_to, last), p.right_sign, keys, bucket)), '')
        else usage.fact_sql('daily' || level, p.day_from, least(p.day_to, last), 1, keys, bucket) end;
end $$;
comment on function usage.days_sql(usage.window_parts, boolean, boolean, uuid, text) is
'A statement that reads the whole days of a window from the rollups: by key or by collection and type, through months where they may be used or day by day, of one collection or (null) all; null: there are none.';

-- The one reader: every section of every answer comes from this statement. It holds what the window needs and no more:
-- planning takes longer than reading a small window. Starting parallel workers takes longer than reading rollups; it pays
-- where all there is has to be read raw: hence the setup cost, about a second's work.
drop function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean);
create function usage.window_rows(
    since timestamptz, until timestamptz, collection uuid, by_collection boolean, ai boolean, daily boolean, receipt boolean)
returns table (
    section text, day date, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint, total_value numeric, secondary_value numeric,
    rollup_rows bigint, raw_rows bigint, pending_changes bigint,
    frontier timestamptz, exact boolean, reasons text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p        usage.window_parts := usage.window_parts(since, until);
    events   constant text := usage.window_events_sql(p);
    days     constant text := case when by_collection or ai then usage.days_sql(p, ai, true, collection, 'null::date') end;
    series   text;
    of_keys  constant text := nullif(concat_ws(' union all ',
        case when days is not null then
            'select k.collection_id, k.resource_type, k.job_type, k.model_level, k.event_count, k.total_value, k.secondary_value from rollup k' end,
        case when events is not null then
            'select r.collection_id, r.resource_type, r.job_type, r.model_level, r.event_count, r.total_value, r.secondary_value from raw r' end), '');
    parts    text[] := '{}';
    sections text[] := '{}';
begin
    if events is not null then
        parts := array_append(parts, format($query$raw as (
        select %s as day, e.collection_id, e.resource_type, %s,
               sum(e.sign) as event_count,
               coalesce(sum(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0) as secondary_value,
               count(*) filter (where not e.late) as raw_rows,
               count(*) filter (where e.late) as late_rows
          from %s e
         where %s
         group by 1, 2, 3, 4, 5)$query$,
            case when daily then 'usage.local_day(e.created_at, $5)' else 'null::date' end,
            case when ai then 'e.job_type, e.model_level' else 'null::text as job_type, null::text as model_level' end,
            events,
            concat_ws(' and ', case when collection is null then 'true' else 'e.collection_id = $1' end,
                      case when not (by_collection or daily) then $query$e.resource_type = 'ai'$query$ end)));
    end if;
    if days is not null then
        parts := array_append(parts, format($query$rollup as (
        select k.collection_id, k.resource_type, k.job_type, k.model_level,
               y.event_count, y.total_value, y.secondary_value, y.rollup_rows
          from (select z.key_id, sum(z.event_count) as event_count, sum(z.total_value) as total_value,
                       sum(z.secondary_value) as secondary_value, count(*) as rollup_rows
                  from (%s) z
                 group by z.key_id) y
          join usage.key k on k.id = y.key_id)$query$, days));
    end if;
    if daily then
        if collection is not null then
            series := usage.days_sql(p, false, false, collection, '*');
            series := case when series is not null then
                format('select f.bucket as day, k.resource_type, f.event_count, f.total_value, f.secondary_value, 1 as rollup_rows'
                       ' from (%s) f join usage.key k on k.id = f.key_id', series) end;
        elsif p.day_from < p.day_to then
            series := format('select t.day, t.resource_type, t.event_count, t.total_value, t.secondary_value, 1 as rollup_rows'
                             ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to);
        end if;
        series := nullif(concat_ws(' union all ', series, case when events is not null then
            'select r.day, r.resource_type, r.event_count, r.total_value, r.secondary_value, 0 from raw r' end), '');
    end if;
    if series is not null then
        parts := array_append(parts, format($query$series (day, resource_type, event_count, total_value, secondary_value, rollup_rows) as (
        select z.day, z.resource_type, sum(z.event_count), sum(z.total_value), sum(z.secondary_value), sum(z.rollup_rows)
          from (%s) z (day, resource_type, event_count, total_value, secondary_value, rollup_rows)
         group by 1, 2)$query$, series));
        sections := array_append(sections, $query$
    select 'daily'::text, s.day, null::uuid, s.resource_type::text, null::text, null::text,
           s.event_count::bigint, s.total_value, s.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from series s
     where s.event_count <> 0$query$);
    end if;
    if by_collection and not ai and events is null and days is not null then  -- grouped already
        sections := array_append(sections, $query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           k.event_count::bigint, k.total_value, k.secondary_value,
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from rollup k
     where k.event_count <> 0$query$);
    elsif of_keys is not null and by_collection then
        sections := array_append(sections, format($query$
    select 'by_collection'::text, null::date, k.collection_id, k.resource_type::text, null::text, null::text,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     group by k.collection_id, k.resource_type
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if of_keys is not null and ai then
        sections := array_append(sections, format($query$
    select 'ai_drilldown'::text, null::date, k.collection_id, k.resource_type::text, k.job_type::text, k.model_level::text,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from (%s) k
     where k.resource_type = 'ai'
     group by k.collection_id, k.resource_type, k.job_type, k.model_level
    having sum(k.event_count) <> 0$query$, of_keys));
    end if;
    if receipt then
        sections := array_append(sections, format($query$
    select 'receipt'::text, null::date, null::uuid, null::text, null::text, null::text, null::bigint, null::numeric, null::numeric,
           %s, %s, $2, $3, $4$query$,
            concat_ws(' + ', '0::bigint',
                      case when days is not null then 'coalesce((select sum(k.rollup_rows) from rollup k), 0)::bigint' end,
                      case when series is not null then 'coalesce((select sum(s.rollup_rows) from series s), 0)::bigint' end),
            case when events is null then '0::bigint, 0::bigint'
                 else '(select coalesce(sum(r.raw_rows), 0)::bigint from raw r), (select coalesce(sum(r.late_rows), 0)::bigint from raw r)' end));
    end if;
    if sections <> '{}' then
        return query execute case when parts = '{}' then '' else 'with ' || array_to_string(parts, ', ') end
                             || array_to_string(sections, ' union all ')
        using collection, p.frontier, p.exact, p.reasons, p.zone;
    end if;
end $$;
comment on function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean) is
'Sums of the window [since, until), of one collection or (null) all, for the sections asked for, and the receipt of that read.';

-- The same parts, for any keys and one grain. Days are taken from the coarsest rollup that has the keys, months only where
-- no bucket cuts them. The resource type is a key always: units do not add up.
create or replace function usage.window_sums(
    since timestamptz, until timestamptz, collection uuid,
    by_collection boolean, by_job_type boolean, by_model_level boolean, grain text)
returns table (bucket date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count numeric, total_value numeric, secondary_value numeric)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set parallel_setup_cost = 100000 set row_security = off set datestyle = 'ISO, YMD'
as $$
declare
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    constant boolean := by_job_type or by_model_level;
    by_total  constant boolean := not by_key and not by_collection and collection is null;
    by_months constant boolean := grain in ('none', 'month') and not by_total;
    events    text;
    days      text;
    parts     text[] := '{}';
begin
    events := usage.window_events_sql(p);
    if events is not null then
        parts := array_append(parts, format($query$
            select %s as bucket, %s as collection_id, e.resource_type, %s as job_type, %s as model_level, e.sign::bigint as event_count,
                   coalesce(usage.signed(e.sign, e.value), 0) as total_value,
                   coalesce(usage.signed(e.sign, e.secondary), 0) as secondary_value
              from %s e%s$query$,
            case when grain <> 'none' then 'usage.bucket_of(usage.local_day(e.created_at, $3), $2)' else 'null::date' end,
            case when by_collection then 'e.collection_id' else 'null::uuid' end,
            case when by_job_type then 'e.job_type' else 'null::text' end,
            case when by_model_level then 'e.model_level' else 'null::text' end,
            events, case when collection is not null then ' where e.collection_id = $1' else '' end));
    end if;
    if by_total then
        days := case when p.day_from < p.day_to then format(
            'select usage.bucket_of(t.day, $2) as bucket, null::uuid as collection_id, t.resource_type, null::text as job_type,'
            ' null::text as model_level, t.event_count, t.total_value, t.secondary_value'
            ' from usage.daily_total t where t.day >= %L::date and t.day < %L::date', p.day_from, p.day_to) end;
    else
        days := usage.days_sql(p, by_key, by_months, collection,
                               case when grain = 'none' then 'null::date' else 'usage.bucket_of(*, $2)' end);
        days := case when days is not null then format($query$
            select f.bucket, %s as collection_id, k.resource_type, %s as job_type, %s as model_level,
                   f.event_count, f.total_value, f.secondary_value
              from (select y.bucket, y.key_id, sum(y.event_count) as event_count, sum(y.total_value) as total_value,
                           sum(y.secondary_value) as secondary_value
                      from (%s) y
                     group by 1, 2) f
              join usage.key k on k.id = f.key_id$query$,
                case when by_collection then 'k.collection_id' else 'null::uuid' end,
                case when by_job_type then 'k.job_type' else 'null::text' end,
                case when by_model_level then 'k.model_level' else 'null::text' end, days) end;
    end if;
    if days is not null then
        parts := array_append(parts, days);
    end if;
    if parts <> '{}' then
        return query execute format($query$
            select z.bucket, z.collection_id, z.resource_type::text, z.job_type::text, z.model_level::text,
                   sum(z.event_count)::numeric, sum(z.total_value), sum(z.secondary_value)
              from (%s) z
             group by 1, 2, 3, 4, 5
            having sum(z.event_count) <> 0$query$, array_to_string(parts, ' union all '))
        using collection, grain, p.zone;
    end if;
end $$;

-- The sections' functions, as before: without a receipt, which none of them shows.

create or replace function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.resource_type, r.event_count,
           r.total_value::float8 as total_value, r.secondary_value::float8
      from usage.window_rows(since, until, collection, true, false, false, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'by_collection'
     order by total_value desc, r.collection_id nulls last, r.resource_type collate "C" nulls last
$$;

create or replace function usage.ai_drilldown(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, job_type text, model_level text,
               tokens_in numeric, tokens_out numeric, event_count bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.job_type, r.model_level,
           round(r.total_value) as tokens_in, round(r.secondary_value), r.event_count
      from usage.window_rows(since, until, collection, false, true, false, false) r
      left join usage.collection() c on c.id = r.collection_id
     where r.section = 'ai_drilldown'
     order by tokens_in desc, r.collection_id nulls last,
              r.job_type collate "C" nulls last, r.model_level collate "C" nulls last
$$;

create or replace function usage.daily_series(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (day date, starts_at timestamptz, resource_type text, event_count bigint, total_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.day, usage.day_label(r.day, (select s.time_zone from usage.state s)), r.resource_type, r.event_count,
           r.total_value::float8
      from usage.window_rows(since, until, collection, false, false, true, false) r
     where r.section = 'daily'
     order by r.day desc, r.resource_type collate "C" nulls last
$$;

create or replace function usage.receipt(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (as_of timestamptz, frontier timestamptz, lag interval, exact boolean, reasons text[],
               rollup_rows bigint, raw_rows bigint, pending_changes bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select now(), r.frontier, case when isfinite(r.frontier) then now() - r.frontier end, r.exact, r.reasons,
           r.rollup_rows, r.raw_rows, r.pending_changes
      from usage.window_rows(since, until, collection, true, true, true, true) r
     where r.section = 'receipt'
$$;

create or replace function usage.overview_rows(since timestamptz, until timestamptz default null, collection uuid default null)
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
      from usage.window_rows(since, until, collection, true, true, true, true) r
      left join usage.collection() c on c.id = r.collection_id
     order by 1, 2
$$;


-- Privileges ------------------------------------------------------------------------------------------------------------

-- Whoever could run the functions that these serve, or read what they read.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc new, pg_proc old, aclexplode(old.proacl) a
         where old.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, old.proowner)
           and new.pronamespace = 'usage'::regnamespace and new.proname in ('range_sql', 'measured_sql', 'fact_sql', 'days_sql', 'window_events_sql', 'window_rows')
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
