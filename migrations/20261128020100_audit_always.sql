-- Ordinary triggers rest under `session_replication_role = replica`, which a superuser can set for a session and which
-- the appliers of logical replication have: a cancel, or a change of a configuration, went unaudited there. The guard of
-- JobHistory and the rule that AuditLog only grows do not rest either. (That of cancels is made anew by the next migration.)
alter table vm.Organization enable always trigger organization_audit;
alter table vm.OrganizationMember enable always trigger organizationmember_audit;
alter table vm.SourceConfig enable always trigger sourceconfig_audit;
alter table vm.JobConfigSource enable always trigger jobconfigsource_audit;
alter table vm.JobConfig enable always trigger jobconfig_audit;
alter table vm.JobSchedule enable always trigger jobschedule_audit;
