-- Nothing is for everybody, save what a writer of the source needs: the frontier to compare with (below PostgreSQL 17
-- he would fail without), and the trigger functions, without which the host's role could not create a partition.
-- Roles are deploy/roles.sql's business: roles belong to the cluster, not to this schema.
select usage.restore_grants();
