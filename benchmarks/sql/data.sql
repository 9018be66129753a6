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
-- As many events of the last 30 days inserted, deleted and corrected.
with past as (
    select ctid, row_number() over (order by created_at, id) as n from public.resource_usage_log
     where created_at >= %(since)s and created_at < %(until)s and resource_type = 'ai'
), chosen as (
    select ctid, n %% 3 as what from past where n %% greatest(1, (select count(*) from past) / %(n)s) = 0 limit %(n)s
), corrected as (
    update public.resource_usage_log e set detail = jsonb_set(detail, '{tokens_in}', to_jsonb((detail->>'tokens_in')::numeric + 1000))
      from chosen where e.ctid = chosen.ctid and what = 0
), deleted as (
    delete from public.resource_usage_log e using chosen where e.ctid = chosen.ctid and what = 1
)
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select e.collection_id, e.resource_type, e.detail, e.created_at
  from public.resource_usage_log e join chosen on e.ctid = chosen.ctid where what = 2

-- index_of_one_collection --
create index resource_usage_log_bench on public.resource_usage_log (collection_id, created_at)

-- drop_index_of_one_collection --
drop index public.resource_usage_log_bench
