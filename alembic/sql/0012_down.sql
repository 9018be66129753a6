-- Back to 0011.

drop function usage.planned_by_collection(usage.window_parts, jsonb, jsonb);
drop function usage.planned_keys(boolean);
drop function usage.expected_events(usage.window_parts);
drop function usage.whole_quarters(usage.window_parts);
