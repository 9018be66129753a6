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
-- A hash of the value: its B-tree compares twenty keys, column by column, for each that it adds or finds, which takes four
-- times as long, and is three times as large. The constraint is what UNIQUE would be.
alter table usage.key add constraint key_columns_key
    exclude using hash ((row(collection_id, resource_type, job_type, model_level)::usage.key_columns) with =);
comment on constraint key_columns_key on usage.key is 'No key has two numbers. Its index is how folds find them.';
create index key_collection on usage.key (collection_id);
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

