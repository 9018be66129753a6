-- What writers do: the same statements into a table with capture and into one without.

-- insert_one --
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
values (%(collection)s::uuid, 'ai', '{"job_type": "chat", "model_level": "large", "tokens_in": 1200, "tokens_out": 300}',
        clock_timestamp() - %(age)s::interval)

-- insert_many --
insert into public.resource_usage_log (collection_id, resource_type, detail, created_at)
select %(collection)s::uuid, 'ai', jsonb_build_object('job_type', 'chat', 'model_level', 'large', 'tokens_in', n, 'tokens_out', 300),
       clock_timestamp() - %(age)s::interval
  from unnest(%(tokens)s::int[]) n

-- copy_out_tail --
-- To the client: what an importer of new events would send.
copy (select collection_id, resource_type, detail, now() + interval '1 microsecond' * row_number() over ()
        from (select * from public.resource_usage_log order by created_at desc limit %(n)s) newest) to stdout

-- copy_out_late --
copy (select collection_id, resource_type, detail, created_at - interval '2 days'
        from (select * from public.resource_usage_log order by created_at desc limit %(n)s) newest) to stdout

-- copy_in --
copy public.resource_usage_log (collection_id, resource_type, detail, created_at) from stdin
