-- Changes that the benchmark makes to the events.

-- collection --
-- As the sample data names them, the largest first.
select md5('1/' || %(n)s::text)::uuid::text

-- add_tail --
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select collection_id, resource_type, detail, clock_timestamp()
  from (select * from public.resource_usage_log order by created_at desc limit %(n)s) newest

-- add_late --
-- Evenly over the 30 days before yesterday.
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select collection_id, resource_type, detail,
       now() - interval '1 day' - interval '30 days' * (row_number() over () - 1) / %(n)s
  from (select * from public.resource_usage_log order by created_at desc limit %(n)s) newest

-- change_the_past --
-- About as many events of the window inserted, deleted and corrected. By id: a ctid is no name where there are partitions.
with past as (
    select id, row_number() over (order by id) as n, count(*) over () as events from public.resource_usage_log
     where created_at >= %(since)s and created_at < %(until)s and resource_type = 'ai'
), spread as (
    select id, n / greatest(1, events / %(n)s) as place from past where n %% greatest(1, events / %(n)s) = 0
), chosen as (
    select id, place %% 3 as what from spread order by place limit %(n)s
), corrected as (
    update public.resource_usage_log e
       set detail = jsonb_set(detail, '{tokens_in}', to_jsonb((detail->>'tokens_in')::numeric + 1000))
      from chosen where e.id = chosen.id and what = 0 and e.created_at >= %(since)s and e.created_at < %(until)s
), deleted as (
    delete from public.resource_usage_log e using chosen
     where e.id = chosen.id and what = 1 and e.created_at >= %(since)s and e.created_at < %(until)s
)
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select e.collection_id, e.resource_type, e.detail, e.created_at
  from public.resource_usage_log e join chosen on e.id = chosen.id
 where what = 2 and e.created_at >= %(since)s and e.created_at < %(until)s

-- index_of_one_collection --
create index resource_usage_log_bench on public.resource_usage_log (collection_id, created_at)

-- drop_index_of_one_collection --
drop index public.resource_usage_log_bench
