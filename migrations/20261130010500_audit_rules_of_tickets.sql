-- Who changed what gets a ticket and who gets it. ALWAYS, as with the others, so that no setting of a session turns it off.
create trigger ignore_audit after insert or update or delete on vm.Ignore
  for each row execute function vm.audit_row('Ignore');
create trigger assignmentrules_audit after insert or update or delete on vm.AssignmentRules
  for each row execute function vm.audit_row('AssignmentRules');
create trigger categoryrule_audit after insert or update or delete on vm.CategoryRule
  for each row execute function vm.audit_row('CategoryRule');
create trigger tagmap_audit after insert or update or delete on vm.TagMap
  for each row execute function vm.audit_row('TagMap');
alter table vm.Ignore enable always trigger ignore_audit;
alter table vm.AssignmentRules enable always trigger assignmentrules_audit;
alter table vm.CategoryRule enable always trigger categoryrule_audit;
alter table vm.TagMap enable always trigger tagmap_audit;
comment on column vm.AuditLog.TableName is
  'JobConfig, JobConfigSource, JobSchedule, SourceConfig, Organization, OrganizationMember, JobHistory, Ignore, AssignmentRules, CategoryRule or TagMap';
