-- Run-time SQL of metrics as data: what each resource type adds up.

-- list --
select m.resource_type, m.value_key, m.secondary_key, m.unit, m.secondary_unit, m.label
  from usage.metric m
 order by m.resource_type

-- history --
select h.resource_type, h.value_key, h.secondary_key, h.unit, h.secondary_unit, h.label,
       usage.local_day(h.valid_below, s.time_zone)::text
  from usage.metric_history h, usage.state s
 order by h.resource_type, h.id

-- previous_month --
-- The first instant of the month of the last event below an instant (null: of the last one of all).
select usage.day_start(usage.month_of(usage.local_day(e.created_at, s.time_zone)), s.time_zone)::text
  from usage.event() e, usage.state s
 where e.created_at is not null and (%(below)s::timestamptz is null or e.created_at < %(below)s::timestamptz)
 order by e.created_at desc
 limit 1

-- has_keys --
-- Events of the type in [from, below), and whether one of them has the one key, and the other. Of what is no object
-- measured_sql() finds no key, and neither does this.
select count(*),
       coalesce(bool_or(e.detail -> %(value_key)s::text is not null), false),
       coalesce(bool_or(e.detail -> %(secondary_key)s::text is not null), false)
  from usage.event() e
 where e.created_at >= %(from)s::timestamptz and (%(below)s::timestamptz is null or e.created_at < %(below)s::timestamptz)
   and e.resource_type collate "C" = %(type)s

-- keys_seen --
-- Keys in the newest N of those events, and how often.
select k.key, count(*)
  from (select e.detail from usage.event() e
         where e.created_at >= %(from)s::timestamptz and (%(below)s::timestamptz is null or e.created_at < %(below)s::timestamptz)
           and e.resource_type collate "C" = %(type)s
         order by e.created_at desc
         limit %(n)s) n,
       jsonb_object_keys(case when jsonb_typeof(n.detail) = 'object' then n.detail else '{}' end) k (key)
 group by k.key

-- next_event --
-- The first event, of whatever type, from an instant on, as its month, and that month's end: infinity is none's start.
select m.month::text,
       case when m.month = 'infinity' then 'infinity' else usage.day_start(usage.next_month(m.month), m.time_zone)::text end
  from (select usage.month_of(usage.local_day(e.created_at, s.time_zone)) as month, s.time_zone
          from usage.event() e, usage.state s
         where e.created_at >= %(from)s::timestamptz
         order by e.created_at
         limit 1) m

-- month --
-- Sums of the type's events in [from, to) by the old keys and by the new ones, through the functions that measured_sql() uses.
select count(*),
       coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> %(old_value)s::text))), 0),
       coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> %(new_value)s::text))), 0),
       coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> %(old_secondary)s::text))), 0),
       coalesce(sum(usage.in_bounds(usage.parsed_number(e.detail -> %(new_secondary)s::text))), 0),
       count(*) filter (where usage.is_rejected(e.detail -> %(new_value)s::text, usage.in_bounds(usage.parsed_number(e.detail -> %(new_value)s::text)))
                           or usage.is_rejected(e.detail -> %(new_secondary)s::text, usage.in_bounds(usage.parsed_number(e.detail -> %(new_secondary)s::text))))
  from usage.event() e
 where e.created_at >= %(from)s::timestamptz and (%(to)s::timestamptz = 'infinity' or e.created_at < %(to)s::timestamptz)
   and e.resource_type collate "C" = %(type)s

-- keep_old --
-- Below the seal the old definition stays: unless one is kept already of the same days, for then they never had this one,
-- or they have no event of the type, for then late ones may go by the new one.
insert into usage.metric_history (resource_type, value_key, secondary_key, unit, secondary_unit, label, valid_below)
select t.resource_type, m.value_key, m.secondary_key, m.unit, m.secondary_unit, m.label, s.sealed_until
  from (select %(type)s::text as resource_type) t
  left join usage.metric m on m.resource_type = t.resource_type collate "C", usage.state s
 where isfinite(s.sealed_until)
   and not exists (select from usage.metric_history h
                    where h.resource_type = t.resource_type collate "C" and h.valid_below >= s.sealed_until)
   and exists (select from usage.daily_total d
                where d.resource_type = usage.key_text(t.resource_type) collate "C"
                  and d.day < usage.local_day(s.sealed_until, s.time_zone))

-- forget_restored --
-- What the days below the seal have is the definition again: they had no other in between.
delete from usage.metric_history h
 using usage.state s
 where h.resource_type = %(type)s and h.valid_below = s.sealed_until
   and (h.value_key, h.secondary_key) is not distinct from (%(value_key)s::text, %(secondary_key)s::text)

-- add --
insert into usage.metric (resource_type, value_key, secondary_key, unit, secondary_unit, label)
values (%(resource_type)s, %(value_key)s, %(secondary_key)s, %(unit)s, %(secondary_unit)s, %(label)s)

-- change --
update usage.metric
   set value_key = %(value_key)s, secondary_key = %(secondary_key)s, unit = %(unit)s,
       secondary_unit = %(secondary_unit)s, label = %(label)s
 where resource_type = %(resource_type)s

-- remove --
delete from usage.metric where resource_type = %(type)s
