-- Back to 0006, whose statements are run again first.

drop function usage.collection_rows(timestamptz, timestamptz, uuid, boolean);
drop function usage.planned_rows(usage.window_parts, uuid, boolean, integer[], jsonb, jsonb);
drop function usage.measured_text(text, text, text);
select usage.restore_grants();
