-- Back to 0012, whose readers have been put back.

drop function usage.with_marks(usage.window_parts, timestamptz, timestamptz);
alter type usage.window_parts drop attribute mark_signs, drop attribute marks;
drop trigger keep_six_hours_insert on usage.hourly_collection_fact;
drop trigger keep_six_hours_update on usage.hourly_collection_fact;
drop trigger keep_six_hours_delete on usage.hourly_collection_fact;
drop trigger keep_six_hours_truncate on usage.hourly_collection_fact;
drop function usage.keep_six_hours();
drop trigger let_go_of_marks on usage.state;
drop trigger let_go_of_marks on usage.verification;
drop function usage.let_go_of_marks();
drop table usage.mark_fact;
drop table usage.six_hours;
drop function usage.six_hours_of(timestamptz);
