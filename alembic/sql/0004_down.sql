-- Back to 0003: wide rollups, and the functions that read them, as 0001 to 0003 have them.
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

create or replace function usage.measured(
    head_sign integer, head_from timestamptz, head_to timestamptz,
    foot_sign integer, foot_from timestamptz, foot_to timestamptz,
    tail_from timestamptz, tail_to timestamptz,
    late_from timestamptz, late_to timestamptz, late_sign integer)
returns table (sign integer, late boolean, created_at timestamptz, collection_id uuid,
               resource_type text, job_type text, model_level text,
               value numeric, secondary numeric, rejected boolean)
language sql stable
begin atomic
select n.sign, n.late, n.created_at, n.collection_id,
       usage.key_text(n.resource_type) collate "C",
       usage.key_text(n.job_type) collate "C",
       usage.key_text(n.model_level) collate "C",
       usage.in_bounds(n.value_number),
       usage.in_bounds(n.secondary_number),
       usage.is_rejected(n.value, usage.in_bounds(n.value_number))
           or usage.is_rejected(n.secondary, usage.in_bounds(n.secondary_number))
  from (select j.*, usage.parsed_number(j.value) as value_number, usage.parsed_number(j.secondary) as secondary_number
          from (select r.sign, r.late, r.created_at, r.collection_id, r.resource_type,
                       r.detail ->> 'job_type' as job_type,
                       r.detail ->> 'model_level' as model_level,
                       r.detail -> case when r.created_at < (select max(h.valid_below) from usage.metric_history h)
                                        then (select d.value_key from usage.metric_definition d
                                               where d.resource_type = r.resource_type collate "C" and r.created_at >= d.valid_from
                                                 and (d.valid_to is null or r.created_at < d.valid_to))
                                        else m.value_key end as value,
                       r.detail -> case when r.created_at < (select max(h.valid_below) from usage.metric_history h)
                                        then (select d.secondary_key from usage.metric_definition d
                                               where d.resource_type = r.resource_type collate "C" and r.created_at >= d.valid_from
                                                 and (d.valid_to is null or r.created_at < d.valid_to))
                                        else m.secondary_key end as secondary
                  from (select head_sign as sign, false as late, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= head_from and e.created_at < head_to
                        union all
                        select foot_sign, false, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= foot_from and e.created_at < foot_to
                        union all
                        select 1, false, e.created_at, e.collection_id, e.resource_type, e.detail
                          from usage.event() e
                         where e.created_at >= tail_from and (tail_to is null or e.created_at < tail_to)
                        union all
                        select l.sign::integer, true, l.created_at, l.collection_id, l.resource_type, l.detail
                          from usage.late_change l
                         where l.created_at >= late_from and l.created_at < late_to
                           and (late_sign is null or l.sign = late_sign)) r
                  left join usage.metric m on m.resource_type = r.resource_type collate "C"
                offset 0) j
        offset 0) n;
end;
comment on function usage.measured(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer) is
'Signed events of some ranges with their key and values: the metric expression''s one home, for folds, reads and verify.';

create or replace function usage.pending_sums()
returns table (day date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count bigint, total_value numeric, secondary_value numeric, rejected_count bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    top  timestamptz := usage.effective_frontier();
    zone text := (select s.time_zone from usage.state s);
begin
    return query execute $query$
        select usage.local_day(e.created_at, $2), e.collection_id, e.resource_type, e.job_type, e.model_level,
               sum(e.sign)::bigint,
               coalesce(sum(usage.signed(e.sign, e.value)), 0),
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0),
               coalesce(sum(e.sign) filter (where e.rejected), 0)::bigint
          from usage.measured(null, null, null, null, null, null, $1, null, '-infinity', $1, null) e
         group by 1, 2, 3, 4, 5
    $query$ using top, zone;
end $$;

drop function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean, boolean);
create or replace function usage.window_rows(
    since timestamptz, until timestamptz, collection uuid, by_collection boolean, ai boolean, daily boolean)
returns table (
    section text, day date, collection_id uuid, resource_type text, job_type text, model_level text,
    event_count bigint, total_value numeric, secondary_value numeric,
    rollup_rows bigint, raw_rows bigint, pending_changes bigint,
    frontier timestamptz, exact boolean, reasons text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    p usage.window_parts := usage.window_parts(since, until);
begin
    return query execute $query$
    with raw as materialized (
        select case when $3 then usage.local_day(e.created_at, $14) end as day,
               e.collection_id, e.resource_type,
               case when $2 then e.job_type end as job_type,
               case when $2 then e.model_level end as model_level,
               sum(e.sign) as event_count,
               coalesce(sum(usage.signed(e.sign, e.value)), 0) as total_value,
               coalesce(sum(usage.signed(e.sign, e.secondary)), 0) as secondary_value,
               count(*) filter (where not e.late) as raw_rows,
               count(*) filter (where e.late) as late_rows
          from usage.measured($4, $5, $6, $7, $8, $9, $10, $11, $12, $13, null) e
         where ($15 is null or e.collection_id = $15)
           and ($1 or $3 or e.resource_type = 'ai')
         group by 1, 2, 3, 4, 5
    ), rollup as (
        select y.collection_id, y.resource_type,
               case when $2 then y.job_type end as job_type,
               case when $2 then y.model_level end as model_level,
               sum(y.event_count) as event_count,
               sum(y.total_value) as total_value,
               sum(y.secondary_value) as secondary_value,
               count(*) as rollup_rows
          from (select m.collection_id, m.resource_type, m.job_type, m.model_level,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly m where $2 and m.month >= $16 and m.month < $17
                union all
                select d.collection_id, d.resource_type, d.job_type, d.model_level,
                       $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                  from usage.daily d where $2 and d.day >= $19 and d.day < $20
                union all
                select d.collection_id, d.resource_type, d.job_type, d.model_level,
                       $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                  from usage.daily d where $2 and d.day >= $22 and d.day < $23
                union all
                select m.collection_id, m.resource_type, null, null,
                       m.event_count, m.total_value, m.secondary_value
                  from usage.monthly_collection m where $1 and not $2 and m.month >= $16 and m.month < $17
                union all
                select d.collection_id, d.resource_type, null, null,
                       $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                  from usage.daily_collection d where $1 and not $2 and d.day >= $19 and d.day < $20
                union all
                select d.collection_id, d.resource_type, null, null,
                       $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                  from usage.daily_collection d where $1 and not $2 and d.day >= $22 and d.day < $23) y
         where ($15 is null or y.collection_id = $15)
           and ($1 or y.resource_type = 'ai')
         group by 1, 2, 3, 4
    ), series as (
        select z.day, z.resource_type, sum(z.event_count) as event_count, sum(z.total_value) as total_value,
               sum(z.secondary_value) as secondary_value, sum(z.rollup_rows) as rollup_rows
          from (select t.day, t.resource_type, t.event_count, t.total_value, t.secondary_value, 1 as rollup_rows
                  from usage.daily_total t
                 where $3 and $15 is null and t.day >= $24 and t.day < $25
                union all
                select d.day, d.resource_type, d.event_count, d.total_value, d.secondary_value, 1
                  from usage.daily_collection d
                 where $3 and d.collection_id = $15 and d.day >= $24 and d.day < $25
                union all
                select r.day, r.resource_type, r.event_count, r.total_value, r.secondary_value, 0
                  from raw r where $3) z
         group by 1, 2
    ), key_sum as (
        select k.collection_id, k.resource_type, k.job_type, k.model_level, k.event_count, k.total_value, k.secondary_value
          from rollup k
        union all
        select r.collection_id, r.resource_type, r.job_type, r.model_level, r.event_count, r.total_value, r.secondary_value
          from raw r
    )
    select 'by_collection', null::date, k.collection_id, k.resource_type::text, null, null,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null::bigint, null::bigint, null::bigint, null::timestamptz, null::boolean, null::text[]
      from key_sum k
     where $1
     group by k.collection_id, k.resource_type
    having sum(k.event_count) <> 0
    union all
    select 'ai_drilldown', null, k.collection_id, k.resource_type, k.job_type, k.model_level,
           sum(k.event_count)::bigint, sum(k.total_value), sum(k.secondary_value),
           null, null, null, null, null, null
      from key_sum k
     where $2 and k.resource_type = 'ai'
     group by k.collection_id, k.resource_type, k.job_type, k.model_level
    having sum(k.event_count) <> 0
    union all
    select 'daily', s.day, null, s.resource_type, null, null,
           s.event_count::bigint, s.total_value, s.secondary_value, null, null, null, null, null, null
      from series s
     where $3 and s.event_count <> 0
    union all
    select 'receipt', null, null, null, null, null, null, null, null,
           coalesce((select sum(k.rollup_rows) from rollup k), 0)::bigint
               + coalesce((select sum(s.rollup_rows) from series s where $3), 0)::bigint,
           coalesce(sum(r.raw_rows), 0)::bigint, coalesce(sum(r.late_rows), 0)::bigint, $26, $27, $28
      from raw r
    $query$
    using by_collection, ai, daily,                                                     -- 1-3
          p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to,     -- 4-9
          p.tail_from, p.tail_to, p.late_from, p.late_to, p.zone, collection,           -- 10-15
          p.month_from, p.month_to, p.left_sign, p.left_from, p.left_to,                -- 16-20
          p.right_sign, p.right_from, p.right_to, p.day_from, p.day_to,                 -- 21-25
          p.frontier, p.exact, p.reasons;                                               -- 26-28
end $$;
comment on function usage.window_rows(timestamptz, timestamptz, uuid, boolean, boolean, boolean) is
'Sums of the window [since, until), of one collection or (null) all, for the sections asked for, and the receipt of that read.';

create or replace function usage.by_collection(since timestamptz, until timestamptz default null, collection uuid default null)
returns table (collection_id uuid, collection_title text, resource_type text, event_count bigint,
               total_value float8, secondary_value float8)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.collection_id, c.title, r.resource_type, r.event_count,
           r.total_value::float8 as total_value, r.secondary_value::float8
      from usage.window_rows(since, until, collection, true, false, false) r
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
      from usage.window_rows(since, until, collection, false, true, false) r
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
      from usage.window_rows(since, until, collection, false, false, true) r
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
      from usage.window_rows(since, until, collection, true, true, true) r
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
      from usage.window_rows(since, until, collection, true, true, true) r
      left join usage.collection() c on c.id = r.collection_id
     order by 1, 2
$$;

create or replace function usage.window_sums(
    since timestamptz, until timestamptz, collection uuid,
    by_collection boolean, by_job_type boolean, by_model_level boolean, grain text)
returns table (bucket date, collection_id uuid, resource_type text, job_type text, model_level text,
               event_count numeric, total_value numeric, secondary_value numeric)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set row_security = off
as $$
declare
    p         usage.window_parts := usage.window_parts(since, until);
    by_key    boolean := by_job_type or by_model_level;
    by_total  boolean := not by_key and not by_collection and collection is null;
    by_months boolean := grain in ('none', 'month') and not by_total;
begin
    return query execute $query$
    select z.bucket, z.collection_id, z.resource_type::text, z.job_type::text, z.model_level::text,
           sum(z.event_count), sum(z.total_value), sum(z.secondary_value)
      from (select case when $26 <> 'none' then usage.bucket_of(usage.local_day(e.created_at, $11), $26) end as bucket,
                   case when $1 then e.collection_id end as collection_id, e.resource_type,
                   case when $2 then e.job_type end as job_type, case when $3 then e.model_level end as model_level,
                   e.sign::bigint as event_count,
                   coalesce(usage.signed(e.sign, e.value), 0) as total_value,
                   coalesce(usage.signed(e.sign, e.secondary), 0) as secondary_value
              from usage.measured($4, $5, $6, $7, $8, $9, $10, $12, $13, $14, null) e
             where $15 is null or e.collection_id = $15
            union all
            select y.bucket, case when $1 then y.collection_id end, y.resource_type,
                   case when $2 then y.job_type end, case when $3 then y.model_level end,
                   y.event_count, y.total_value, y.secondary_value
              from (select usage.bucket_of(m.month, $26) as bucket, m.collection_id, m.resource_type, m.job_type, m.model_level,
                           m.event_count, m.total_value, m.secondary_value
                      from usage.monthly m where $27 and $29 and m.month >= $16 and m.month < $17
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                      from usage.daily d where $27 and $29 and d.day >= $19 and d.day < $20
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                      from usage.daily d where $27 and $29 and d.day >= $22 and d.day < $23
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, d.job_type, d.model_level,
                           d.event_count, d.total_value, d.secondary_value
                      from usage.daily d where $27 and not $29 and d.day >= $24 and d.day < $25
                    union all
                    select usage.bucket_of(m.month, $26), m.collection_id, m.resource_type, null, null,
                           m.event_count, m.total_value, m.secondary_value
                      from usage.monthly_collection m where not $27 and $29 and m.month >= $16 and m.month < $17
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           $18 * d.event_count, usage.signed($18, d.total_value), usage.signed($18, d.secondary_value)
                      from usage.daily_collection d where not $27 and $29 and d.day >= $19 and d.day < $20
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           $21 * d.event_count, usage.signed($21, d.total_value), usage.signed($21, d.secondary_value)
                      from usage.daily_collection d where not $27 and $29 and d.day >= $22 and d.day < $23
                    union all
                    select usage.bucket_of(d.day, $26), d.collection_id, d.resource_type, null, null,
                           d.event_count, d.total_value, d.secondary_value
                      from usage.daily_collection d where not $27 and not $28 and not $29 and d.day >= $24 and d.day < $25
                    union all
                    select usage.bucket_of(t.day, $26), null, t.resource_type, null, null,
                           t.event_count, t.total_value, t.secondary_value
                      from usage.daily_total t where $28 and t.day >= $24 and t.day < $25) y
             where $15 is null or y.collection_id = $15) z
     group by 1, 2, 3, 4, 5
    having sum(z.event_count) <> 0
    $query$
    using by_collection, by_job_type, by_model_level,                                   -- 1-3
          p.head_sign, p.head_from, p.head_to, p.foot_sign, p.foot_from, p.foot_to,     -- 4-9
          p.tail_from, p.zone, p.tail_to, p.late_from, p.late_to, collection,           -- 10-15
          p.month_from, p.month_to, p.left_sign, p.left_from, p.left_to,                -- 16-20
          p.right_sign, p.right_from, p.right_to, p.day_from, p.day_to,                 -- 21-25
          grain, by_key, by_total, by_months;                                           -- 26-29
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
           and s.relname in ('daily', 'daily_collection', 'daily_total', 'monthly', 'monthly_collection', 'late_change',
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

drop function usage.days_sql(usage.window_parts, boolean, boolean, uuid, text);
drop function usage.window_events_sql(usage.window_parts);
drop function usage.fact_sql(text, date, date, integer, integer[], text);
drop function usage.measured_sql(integer, timestamptz, timestamptz, integer, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, integer);
drop function usage.range_sql(timestamptz, timestamptz);
drop view usage.narrow_daily, usage.narrow_daily_collection, usage.narrow_monthly, usage.narrow_monthly_collection;
drop table usage.daily_fact, usage.daily_collection_fact, usage.monthly_fact, usage.monthly_collection_fact, usage.key;
drop type usage.key_columns;
alter function usage.event() parallel unsafe;
alter function usage.collection() parallel unsafe;

-- Whoever could run the functions that these are parts of.
do $$
declare
    statement text;
begin
    for statement in
        select format('grant execute on function %s to %s%s', new.oid::regprocedure, a.grantee::regrole,
                      case when a.is_grantable then ' with grant option' else '' end)
          from pg_proc new, pg_proc old, aclexplode(old.proacl) a
         where old.oid = 'usage.fingerprint_doubt()'::regprocedure and a.grantee not in (0, old.proowner)
           and new.pronamespace = 'usage'::regnamespace and new.proname in ('measured', 'window_rows')
    loop
        execute statement;
    end loop;
end $$;

select usage.restore_grants();
