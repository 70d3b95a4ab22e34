-- Who may do what to the tables of vm. Run again by every `migrate --roles`, and behind migrations where it was run
-- before: it says how things shall be, whatever they were.
--
-- A table to come needs one line in the list below. Its columns:
--   runner   what rosterd_runner may do
--   reads    columns that operators and viewers may read: * for all, '' for none
--   sees     of which rows; $mine is "of an organization of this login"
--   inserts, updates   columns that operators may write, of rows they see
--   checks   what an operator's new row must fulfil besides
-- Nobody but the owner deletes, except the runner its own bookkeeping; nobody but the owner truncates.
do $do$
declare
  t record;
  sees text;
  mine constant text := 'OrganizationID = any ((select vm.my_organizations())::uuid[])';
  of_config constant text := 'exists (select from vm.JobConfig c where c.ID = ConfigID)';
  of_source constant text := 'exists (select from vm.SourceConfig s where s.ID = SourceConfigID)';
  of_history constant text := 'exists (select from vm.JobHistory h where h.ID = %s)';
begin
  for t in select * from (values
    ('Organization', 'select', '*', 'ID = any ((select vm.my_organizations())::uuid[])', '', '', ''),
    ('OrganizationMember', '', '*', 'Login = session_user', '', '', ''),
    ('AuditLog', '', '*', '$mine', '', '', ''),

    ('Job', 'select, insert, update', '*', 'true', '', '', ''),
    ('JobStatus', 'select', '*', 'true', '', '', ''),
    ('LogType', 'select', '*', 'true', '', '', ''),
    ('SourceType', 'select', '*', 'true', '', '', ''),
    ('Source', 'select', '*', 'true', '', '', ''),
    ('_sqlx_migrations', 'select', '*', 'true', '', '', ''),

    -- AuthInfo can be written and not read.
    ('SourceConfig', 'select',
      'ID, Source, SourceID, OrganizationID, Address, Port, Payload, Active, Delay, Concurrency, CreatedDate, CreatedBy, UpdatedDate, UpdatedBy',
      '$mine',
      'ID, Source, SourceID, OrganizationID, Address, Port, AuthInfo, Payload, Active',
      'Source, SourceID, Address, Port, AuthInfo, Payload, Active', ''),
    ('JobConfig', 'select, update (LastJobStart)', '*', '$mine',
      'ID, JobID, OrganizationID, DataInSourceConfigID, DataOutSourceConfigID, Payload, PriorityOverride, Continuous, WaitInSeconds, MaxInstances, AutoStart, Active, TimeoutInSeconds, MaxAttempts, RetryDelaySeconds, OnRunnerLoss',
      'DataInSourceConfigID, DataOutSourceConfigID, Payload, PriorityOverride, Continuous, WaitInSeconds, MaxInstances, AutoStart, Active, TimeoutInSeconds, MaxAttempts, RetryDelaySeconds, OnRunnerLoss', ''),
    -- Both, so that nobody borrows the credentials of others.
    ('JobConfigSource', 'select', '*', '$of_config and $of_source',
      'ConfigID, Direction, Position, SourceConfigID', 'Direction, Position, SourceConfigID', ''),
    ('JobSchedule', 'select, update (LastRun, NextRun, Error)', '*', '$of_config',
      'ID, Name, ConfigID, DaysOfWeek, TimeOfDay, Cron, TimeZone, MissedRun, Overlap, JitterSeconds, Active',
      'Name, ConfigID, DaysOfWeek, TimeOfDay, Cron, TimeZone, MissedRun, Overlap, JitterSeconds, Active', ''),

    -- Origin is for vm.rerun, which acts with its caller's rights; the trigger lets nothing else through.
    ('JobHistory', 'select, insert, update', '*', '$mine',
      'ID, JobID, ConfigID, OrganizationID, StatusID, ParentJobID, Identifier, Priority, Payload, NotBefore, Origin',
      'StatusID, Identifier, Priority, Payload, NotBefore',
      'ParentJobID is null or vm.sees_job_history(ParentJobID)'),
    ('Logs', 'select, insert', '*', '$of_history(JobHistoryID)', '', '', ''),
    ('JobEffect', 'select, insert, update, delete', '*', '$of_history(HistoryID)', '', '', ''),

    -- JobHistoryWaiting counts in these, whoever the rows belong to.
    ('Runner', 'select, insert, update, delete', '*', 'true', '', '', ''),
    ('Claim', 'select, insert, update, delete', 'ID, RunnerID, ConfigID, Open', 'true', '', '', ''),
    ('CancelRequest', 'select, insert, update, delete', '', 'false', '', '', ''),
    ('WakeHint', 'select, update', '', 'false', '', '', ''),

    ('SourceGate', 'select, insert, update', '*', '$of_source', '', '', ''),
    ('SourceShare', 'select, insert, update, delete', '*', '$of_source', '', '', ''),

    ('OperatingSystemType', 'select', '*', 'true', '', '', ''),
    ('DetectionStatus', 'select', '*', 'true', '', '', ''),
    ('IgnoreType', 'select', '*', 'true', '', '', ''),
    ('TicketStatus', 'select', '*', 'true', '', '', ''),
    ('Device', 'select, insert, update', '*', '$mine', '', '', ''),
    ('AssetGroup', 'select, insert, update', '*', '$mine', '', 'CloudSourceID, RescanQueueSkip', ''),
    ('TagKey', 'select, insert', '*', '$mine', 'OrganizationID, KeyValue', '', ''),
    ('Tag', 'select, insert, update, delete', '*', '$mine', 'OrganizationID, DeviceID, TagKeyID, Value', 'Value', ''),
    ('VulnerabilityInfo', 'select, insert, update', '*', '$mine', '', '', ''),
    ('VulnerabilityReference', 'select, insert, delete', '*', '$mine', '', '', ''),
    ('Ignore', 'select, insert, update', '*', '$mine',
      'OrganizationID, SourceConfigID, TypeID, DeviceID, VulnerabilityID, Port, Protocol, OSRegex, HostnameRegex, DeviceIDRegex, DueDate, Approval, Active',
      'DueDate, Approval, Active', ''),
    ('Detection', 'select, insert, update', '*', '$mine', '', '', ''),
    ('Ticket', 'select, insert, update', '*', '$mine', '',
      'Status, AssignmentGroup, Assignee, ApplicationName, DueDate, CERF, ExceptionDate, Labels, Comment', ''),
    ('TicketHistory', 'select, insert', '*', '$mine', '', '', ''),
    ('TicketChange', 'select, insert, update', '*', '$mine', '', '', ''),
    ('TicketEngineState', 'select, insert, update', '*', '$mine', '', '', ''),
    ('AssignmentRules', 'select', '*', '$mine',
      'OrganizationID, Priority, AssignmentGroup, Assignee, ApplicationName, GroupID, VulnTitleRegex, ExcludeVulnTitleRegex, HostnameRegex, OSRegex, CategoryRegex, TagKeyID, TagKeyRegex, PortCSV, ExcludePortCSV, Active',
      'Priority, AssignmentGroup, Assignee, ApplicationName, GroupID, VulnTitleRegex, ExcludeVulnTitleRegex, HostnameRegex, OSRegex, CategoryRegex, TagKeyID, TagKeyRegex, PortCSV, ExcludePortCSV, Active', ''),
    ('CategoryRule', 'select', '*', '$mine',
      'OrganizationID, SourceID, VulnerabilityTitle, VulnerabilityCategory, Category, Active',
      'SourceID, VulnerabilityTitle, VulnerabilityCategory, Category, Active', ''),
    ('TagMap', 'select', '*', '$mine', 'OrganizationID, CloudTag, TicketingTag, Options, Active',
      'CloudTag, TicketingTag, Options, Active', ''),
    ('ScanSummary', 'select, insert, update', '*', '$mine', '', '', ''),
    ('TicketRescan', 'select, insert, update, delete', '*', '$mine', '', '', '')
  ) as list (name, runner, reads, sees, inserts, updates, checks)
  loop
    if to_regclass('vm.' || t.name) is null then
      raise exception 'there is no table vm.%', t.name;
    end if;
    sees := replace(replace(replace(t.sees, '$mine', mine), '$of_config', of_config), '$of_source', of_source);
    sees := regexp_replace(sees, '\$of_history\((\w+)\)', format(of_history, '\1'));
    execute format('alter table vm.%s enable row level security', t.name);
    execute format('revoke all on vm.%s from public, rosterd_runner, rosterd_operator, rosterd_viewer', t.name);
    execute format('drop policy if exists runner on vm.%s', t.name);
    execute format('drop policy if exists sees on vm.%s', t.name);
    execute format('drop policy if exists inserts on vm.%s', t.name);
    execute format('drop policy if exists updates on vm.%s', t.name);

    execute format('create policy runner on vm.%s to rosterd_runner using (true) with check (true)', t.name);
    if t.runner <> '' then
      execute format('grant %s on vm.%s to rosterd_runner', t.runner, t.name);
    end if;
    if t.reads <> '' then
      execute format('create policy sees on vm.%s for select to rosterd_operator, rosterd_viewer using (%s)', t.name, sees);
      execute format('grant select %s on vm.%s to rosterd_operator, rosterd_viewer',
        case t.reads when '*' then '' else '(' || t.reads || ')' end, t.name);
    end if;
    if t.inserts <> '' then
      execute format('create policy inserts on vm.%s for insert to rosterd_operator with check (%s)', t.name,
        case t.checks when '' then sees else format('%s and (%s)', sees, t.checks) end);
      execute format('grant insert (%s) on vm.%s to rosterd_operator', t.inserts, t.name);
    end if;
    if t.updates <> '' then
      execute format('create policy updates on vm.%s for update to rosterd_operator using (%s)', t.name, sees);
      execute format('grant update (%s) on vm.%s to rosterd_operator', t.updates, t.name);
    end if;
  end loop;
  -- The months of JobHistory are read as JobHistory is, and written by nobody but the owner's functions.
  perform vm.copy_rights_to_month(m.Month) from vm.history_months() m;
end $do$;
