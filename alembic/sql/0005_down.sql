-- Back to 0004.

alter table usage.state drop column doubts;
drop sequence usage.doubt_seq;
