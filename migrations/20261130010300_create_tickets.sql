-- Vulnerability management, third part: tickets, and the rules by which they are made out.
--
-- Ticket holds the tickets of every ticket engine. Those of the engine Local live here and nowhere else, and people work
-- on them by UPDATE; those of another engine are mirrored here, which is what the jobs decide by.
--
-- A detection has at most one ticket that is not closed, whatever happens to the process that makes it: the row is the
-- intention, and the unique index below is what two runs that have the same intention meet. Its Title is null until
-- the engine has given it a key. In an engine that is not this database, a ticket goes through these states:
--   Title null, CreateBegun null      intended; TicketingJob writes it
--   Title null, CreateBegun set       an attempt to create it began, and nobody has said how it ended
--   Title set                         it is there
-- The edges are written by whoever creates (TicketingJob, TicketSyncJob), each with the CreateBegun it saw, so that one
-- of two wins. An attempt whose end nobody knows is looked for by its marker, and begun anew only when the engine's
-- search has had time to know of it.

create table vm.TicketStatus (
  Status text primary key,
  IsOpen boolean not null,
  Meaning text not null
);
comment on table vm.TicketStatus is 'The statuses a ticket can have. All that begin with Closed- are final for the ticket';
comment on column vm.TicketStatus.Status is 'The status, spelled as in Ticket.Status';
comment on column vm.TicketStatus.IsOpen is 'Whether somebody has to work on it';
comment on column vm.TicketStatus.Meaning is 'Who sets it and what follows';
insert into vm.TicketStatus values
  ('Open', true, 'Made by TicketingJob'),
  ('In-Progress', true, 'Set by people'),
  ('Reopened', true, 'Set by ScanCloseJob: the rescan found it again'),
  ('Resolved-Remediated', false, 'Set by people: mended. RescanQueueJob (NORMAL) has it looked at'),
  ('Resolved-Decommissioned', false, 'Set by people: the device is gone. RescanQueueJob (DECOMMISSIONED) has it looked for'),
  ('Resolved-FalsePositive', false, 'Set by people: waits for somebody to decide'),
  ('Resolved-Exception', false, 'Set by people: waits for somebody to decide'),
  ('Scan-Error', true, 'Set by ScanCloseJob: the rescan did not cover the device or could not look into it'),
  ('Closed-Remediated', false, 'Set by ScanCloseJob: the rescan did not find it any more'),
  ('Closed-Decommission', false, 'Set by ScanCloseJob: the device did not answer; it is ignored until it is seen again'),
  ('Closed-Exception', false, 'Set by people, with CERF and ExceptionDate: ExceptionJob has it ignored until then'),
  ('Closed-False-Positive', false, 'Set by people: ExceptionJob has it ignored'),
  ('Closed-CERF', false, 'Set by people'),
  ('Closed-Error', false, 'Set by people: it was a mistake');

create table vm.Ticket (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  SourceConfigID uuid not null,
  Number bigint not null generated always as identity,
  Title text,
  DetectionID uuid not null,
  Status text not null default 'Open' constraint ticket_status_is_known references vm.TicketStatus,
  StatusDate timestamptz not null default clock_timestamp(),
  Summary text not null,
  Description text not null default '',
  Solution text not null default '',
  Priority text not null,
  CVSS numeric(3, 1),
  Category text,
  HostName text not null default '',
  SystemName text,
  Labels text[] not null default '{}',
  AssignmentGroup text,
  Assignee text,
  ApplicationName text,
  DueDate timestamptz not null,
  AlertDate timestamptz not null,
  CERF text,
  ExceptionDate timestamptz,
  ResolutionDate timestamptz,
  LastChecked timestamptz,
  Comment text,
  CreateBegun timestamptz,
  Problem text,
  CreatedDate timestamptz not null default clock_timestamp(),
  CreatedBy text not null default session_user,
  UpdatedDate timestamptz not null default clock_timestamp(),
  UpdatedBy text,
  constraint ticket_pkey primary key (OrganizationID, ID),
  constraint ticket_title_is_unique_in_its_engine unique (OrganizationID, SourceConfigID, Title),
  constraint ticket_engine_is_of_the_same_organization
    foreign key (OrganizationID, SourceConfigID) references vm.SourceConfig (OrganizationID, ID),
  constraint ticket_detection_is_of_the_same_organization
    foreign key (OrganizationID, DetectionID) references vm.Detection (OrganizationID, ID),
  constraint ticket_exception_has_a_number_and_an_end
    check (Status <> 'Closed-Exception' or coalesce(CERF, '') <> '' and ExceptionDate is not null)
) with (fillfactor = 70);
create unique index ticket_is_one_per_detection_unless_closed on vm.Ticket (OrganizationID, DetectionID)
  where Status not like 'Closed-%';
-- Few are in these statuses at once, and RescanQueueJob asks every minute.
create index ticket_to_rescan on vm.Ticket (OrganizationID, SourceConfigID, Status)
  where Status in ('Resolved-Remediated', 'Resolved-Decommissioned');
create index ticket_silenced on vm.Ticket (OrganizationID, DetectionID)
  where Status in ('Closed-Exception', 'Closed-False-Positive');
create index ticket_without_a_key on vm.Ticket (OrganizationID, SourceConfigID, ID) where Title is null;
comment on table vm.Ticket is
  'A ticket for a detection. Of the engine Local it is worked on here: update Ticket set Status = ''Resolved-Remediated'', Comment = ''patched'' where Title = ''VM-1''';
comment on column vm.Ticket.OrganizationID is 'Whose it is';
comment on column vm.Ticket.ID is 'Key of the row';
comment on column vm.Ticket.SourceConfigID is 'The ticket engine it is in';
comment on column vm.Ticket.Number is 'Counts the tickets of all organizations; the engine Local makes its keys of it';
comment on column vm.Ticket.Title is 'The engine''s key of it, such as VM-1; null: it is still to be made there';
comment on column vm.Ticket.DetectionID is 'What it is about';
comment on column vm.Ticket.Status is 'Where it stands: TicketStatus says what each means';
comment on column vm.Ticket.StatusDate is 'Since when: the last change of Status, CERF or ExceptionDate';
comment on column vm.Ticket.Summary is 'One line';
comment on column vm.Ticket.Description is 'What was found, and why it matters';
comment on column vm.Ticket.Solution is 'What to do';
comment on column vm.Ticket.Priority is 'Name of the severity, by severities in Organization.Payload';
comment on column vm.Ticket.CVSS is 'The score it was made for';
comment on column vm.Ticket.Category is 'By CategoryRule, else the scanner''s';
comment on column vm.Ticket.HostName is 'Name of the device, or what a tag says instead (TagMap)';
comment on column vm.Ticket.SystemName is 'Name of the system, if a tag says it (TagMap)';
comment on column vm.Ticket.Labels is 'Labels, as tags say them (TagMap)';
comment on column vm.Ticket.AssignmentGroup is 'By AssignmentRules or TagMap';
comment on column vm.Ticket.Assignee is 'Who works on it';
comment on column vm.Ticket.ApplicationName is 'By AssignmentRules';
comment on column vm.Ticket.DueDate is 'When it shall be mended';
comment on column vm.Ticket.AlertDate is 'When the scanner found it last before the ticket was made, by the scanner''s clock';
comment on column vm.Ticket.CERF is 'Number of the approved exception';
comment on column vm.Ticket.ExceptionDate is 'When the exception ends';
comment on column vm.Ticket.ResolutionDate is 'When it left the open statuses last';
comment on column vm.Ticket.LastChecked is 'When a rescan looked at it last';
comment on column vm.Ticket.Comment is 'The newest comment; TicketHistory keeps all of them';
comment on column vm.Ticket.CreateBegun is 'When the last attempt to create it in its engine began, while that has not given it a key';
comment on column vm.Ticket.Problem is 'Why its engine does not have it yet';
comment on column vm.Ticket.CreatedDate is 'When it was made';
comment on column vm.Ticket.CreatedBy is 'Under which login';
comment on column vm.Ticket.UpdatedDate is 'When it was changed last';
comment on column vm.Ticket.UpdatedBy is 'Under which login';

create table vm.TicketHistory (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  TicketID uuid not null,
  FromStatus text,
  Status text not null,
  Comment text,
  ChangedDate timestamptz not null default clock_timestamp(),
  ChangedBy text not null default session_user,
  constraint tickethistory_pkey primary key (OrganizationID, TicketID, ID),
  constraint tickethistory_ticket_is_of_the_same_organization
    foreign key (OrganizationID, TicketID) references vm.Ticket (OrganizationID, ID) on delete cascade
);
comment on table vm.TicketHistory is 'What became of a ticket: each change of its status and each comment';
comment on column vm.TicketHistory.OrganizationID is 'Whose it is';
comment on column vm.TicketHistory.ID is 'Key of the row, in the order of time';
comment on column vm.TicketHistory.TicketID is 'The ticket';
comment on column vm.TicketHistory.FromStatus is 'The status before';
comment on column vm.TicketHistory.Status is 'The status after';
comment on column vm.TicketHistory.Comment is 'What was said';
comment on column vm.TicketHistory.ChangedDate is 'When';
comment on column vm.TicketHistory.ChangedBy is 'Under which login';

create function vm.check_ticket() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  known record;
  engine record;
begin
  if new.Status is distinct from old.Status then
    select * into known from TicketStatus s where lower(s.Status) = lower(new.Status);
    if not found then
      raise exception using errcode = 'foreign_key_violation', constraint = 'ticket_status_is_known',
        message = format('Ticket %s: there is no status %L', coalesce(new.Title, new.ID::text), new.Status),
        hint = 'Known statuses: ' || (select string_agg(s.Status, ', ' order by s.Status) from TicketStatus s) || '.';
    end if;
    new.Status := known.Status;
    if new.Status = 'Closed-Exception' and (coalesce(new.CERF, '') = '' or new.ExceptionDate is null) then
      raise exception using errcode = 'check_violation', constraint = 'ticket_exception_has_a_number_and_an_end',
        message = format('Ticket %s: an exception needs a number and an end', coalesce(new.Title, new.ID::text)),
        hint = 'Set CERF and ExceptionDate in the same UPDATE.';
    end if;
    if tg_op = 'UPDATE' then
      -- What is closed stays closed: if it is found again there is a new ticket.
      if old.Status like 'Closed-%' and new.Status not like 'Closed-%' and exists (
          select from Ticket t
          where t.OrganizationID = new.OrganizationID and t.DetectionID = new.DetectionID and t.ID <> new.ID
            and t.Status not like 'Closed-%') then
        raise exception using errcode = 'unique_violation', constraint = 'ticket_is_one_per_detection_unless_closed',
          message = format('Ticket %s: its detection has another ticket that is not closed', coalesce(new.Title, new.ID::text)),
          hint = 'Work on that one.';
      end if;
      new.ResolutionDate := case when known.IsOpen then null else coalesce(new.ResolutionDate, clock_timestamp()) end;
    end if;
  end if;
  -- Who may make tickets is a job; operators may not, where there are roles.
  if tg_op = 'UPDATE'
      and not (coalesce(current_setting('rosterd.mirror', true), '') = 'on' and has_table_privilege('vm.Ticket', 'insert'))
      and (new.Status, new.Assignee, new.AssignmentGroup, new.DueDate, new.CERF, new.ExceptionDate, new.Comment)
        is distinct from (old.Status, old.Assignee, old.AssignmentGroup, old.DueDate, old.CERF, old.ExceptionDate, old.Comment) then
    select s.Source into engine from SourceConfig s where s.OrganizationID = new.OrganizationID and s.ID = new.SourceConfigID;
    if engine.Source <> 'Local' then
      raise exception using errcode = 'check_violation', constraint = 'ticket_is_worked_on_in_its_engine',
        message = format('Ticket %s is a mirror of what %s has', coalesce(new.Title, new.ID::text), engine.Source),
        hint = 'Change it there; TicketSyncJob brings it in.';
    end if;
  end if;
  if tg_op = 'UPDATE' then
    if (new.Status, new.CERF, new.ExceptionDate) is distinct from (old.Status, old.CERF, old.ExceptionDate) then
      new.StatusDate := clock_timestamp();
    end if;
    new.UpdatedDate := clock_timestamp();
    new.UpdatedBy := session_user;
  elsif new.Title is null then
    select s.Source, s.Payload ->> 'project' as Project into engine
      from SourceConfig s where s.OrganizationID = new.OrganizationID and s.ID = new.SourceConfigID;
    if engine.Source = 'Local' then
      new.Title := coalesce(nullif(engine.Project, ''), 'VM') || '-' || new.Number;
    end if;
  end if;
  return new;
end $f$;
create trigger ticket_check before insert or update on vm.Ticket
  for each row execute function vm.check_ticket();

create function vm.keep_ticket_history() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  insert into TicketHistory (OrganizationID, TicketID, FromStatus, Status, Comment)
    values (new.OrganizationID, new.ID, old.Status, new.Status, new.Comment);
  return null;
end $f$;
create trigger ticket_history after update on vm.Ticket
  for each row when (old.Status is distinct from new.Status or old.Comment is distinct from new.Comment)
  execute function vm.keep_ticket_history();

create table vm.TicketChange (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  TicketID uuid not null,
  Status text constraint ticketchange_status_is_known references vm.TicketStatus,
  Comment text not null default '',
  ClearAssignee boolean not null default false,
  Problem text,
  CreatedDate timestamptz not null default clock_timestamp(),
  DoneDate timestamptz,
  constraint ticketchange_pkey primary key (OrganizationID, ID),
  constraint ticketchange_ticket_is_of_the_same_organization
    foreign key (OrganizationID, TicketID) references vm.Ticket (OrganizationID, ID) on delete cascade
);
create index ticketchange_to_do on vm.TicketChange (OrganizationID, TicketID) where DoneDate is null;
comment on table vm.TicketChange is
  'What an engine other than Local has still to be told: written with the change of Ticket, in one transaction; carried out by TicketSyncJob';
comment on column vm.TicketChange.OrganizationID is 'Whose it is';
comment on column vm.TicketChange.ID is 'Key of the row, in the order of time; marks the comment at the engine';
comment on column vm.TicketChange.TicketID is 'The ticket';
comment on column vm.TicketChange.Status is 'The status it shall have; null = it stays';
comment on column vm.TicketChange.Comment is 'The comment it shall get';
comment on column vm.TicketChange.ClearAssignee is 'Whether nobody shall be assigned any more';
comment on column vm.TicketChange.Problem is 'Why it could not be carried out yet';
comment on column vm.TicketChange.CreatedDate is 'When it was decided';
comment on column vm.TicketChange.DoneDate is 'When it was carried out';

create table vm.TicketEngineState (
  OrganizationID uuid not null,
  SourceConfigID uuid not null,
  SyncedTo timestamptz,
  HistoryID uuid,
  constraint ticketenginestate_pkey primary key (OrganizationID, SourceConfigID),
  constraint ticketenginestate_engine_is_of_the_same_organization
    foreign key (OrganizationID, SourceConfigID) references vm.SourceConfig (OrganizationID, ID)
);
comment on table vm.TicketEngineState is 'How far TicketSyncJob has read the changes of a ticket engine';
comment on column vm.TicketEngineState.OrganizationID is 'Whose it is';
comment on column vm.TicketEngineState.SourceConfigID is 'The engine';
comment on column vm.TicketEngineState.SyncedTo is
  'All changes up to here were brought in, by the engine''s clock; it stays before what could not be';
comment on column vm.TicketEngineState.HistoryID is 'JobHistory.ID of the TicketSyncJob that is at work, or was last: one at a time';

create table vm.AssignmentRules (
  OrganizationID uuid not null constraint assignmentrules_organization_exists references vm.Organization,
  ID uuid not null default vm.new_id(),
  Priority int not null default 0,
  AssignmentGroup text,
  Assignee text,
  ApplicationName text,
  GroupID text,
  VulnTitleRegex text,
  ExcludeVulnTitleRegex text,
  HostnameRegex text,
  OSRegex text,
  CategoryRegex text,
  TagKeyID uuid,
  TagKeyRegex text,
  PortCSV text,
  ExcludePortCSV text,
  Active boolean not null default true,
  constraint assignmentrules_pkey primary key (OrganizationID, ID),
  constraint assignmentrules_tagkey_is_of_the_same_organization
    foreign key (OrganizationID, TagKeyID) references vm.TagKey (OrganizationID, ID),
  constraint assignmentrules_tag_has_key_and_expression check ((TagKeyID is null) = (TagKeyRegex is null)),
  constraint assignmentrules_has_something_to_assign check (coalesce(AssignmentGroup, Assignee, ApplicationName) is not null),
  constraint assignmentrules_portcsv_is_a_list_of_ports check (PortCSV ~ '^\s*\d{1,5}(\s*,\s*\d{1,5})*\s*$'),
  constraint assignmentrules_excludeportcsv_is_a_list_of_ports check (ExcludePortCSV ~ '^\s*\d{1,5}(\s*,\s*\d{1,5})*\s*$')
);
comment on table vm.AssignmentRules is
  'Who gets a ticket: of the rules whose conditions all hold the one with the highest Priority. Null conditions hold always';
comment on column vm.AssignmentRules.OrganizationID is 'Whose it is';
comment on column vm.AssignmentRules.ID is 'Key of the row; of equal priorities the older rule holds';
comment on column vm.AssignmentRules.Priority is 'Higher wins';
comment on column vm.AssignmentRules.AssignmentGroup is 'What the ticket gets';
comment on column vm.AssignmentRules.Assignee is 'What the ticket gets';
comment on column vm.AssignmentRules.ApplicationName is 'What the ticket gets';
comment on column vm.AssignmentRules.GroupID is 'Condition: Device.GroupID is this';
comment on column vm.AssignmentRules.VulnTitleRegex is 'Condition: matches the title of the vulnerability, as by ~*';
comment on column vm.AssignmentRules.ExcludeVulnTitleRegex is 'Condition: does not match it';
comment on column vm.AssignmentRules.HostnameRegex is 'Condition: matches Device.HostName';
comment on column vm.AssignmentRules.OSRegex is 'Condition: matches Device.OS';
comment on column vm.AssignmentRules.CategoryRegex is 'Condition: matches the category of the ticket';
comment on column vm.AssignmentRules.TagKeyID is 'Condition, with TagKeyRegex: the device has this tag';
comment on column vm.AssignmentRules.TagKeyRegex is 'Condition, with TagKeyID: matches the value of the tag';
comment on column vm.AssignmentRules.PortCSV is 'Condition: the port is one of these, with commas between';
comment on column vm.AssignmentRules.ExcludePortCSV is 'Condition: the port is none of these';
comment on column vm.AssignmentRules.Active is 'false: it does not hold';

create function vm.check_assignment_rule() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  perform check_regex(new.VulnTitleRegex, 'AssignmentRules: VulnTitleRegex', 'assignmentrules_vulntitleregex_is_a_regular_expression');
  perform check_regex(new.ExcludeVulnTitleRegex, 'AssignmentRules: ExcludeVulnTitleRegex', 'assignmentrules_excludevulntitleregex_is_a_regular_expression');
  perform check_regex(new.HostnameRegex, 'AssignmentRules: HostnameRegex', 'assignmentrules_hostnameregex_is_a_regular_expression');
  perform check_regex(new.OSRegex, 'AssignmentRules: OSRegex', 'assignmentrules_osregex_is_a_regular_expression');
  perform check_regex(new.CategoryRegex, 'AssignmentRules: CategoryRegex', 'assignmentrules_categoryregex_is_a_regular_expression');
  perform check_regex(new.TagKeyRegex, 'AssignmentRules: TagKeyRegex', 'assignmentrules_tagkeyregex_is_a_regular_expression');
  return new;
end $f$;
create trigger assignmentrules_check before insert or update on vm.AssignmentRules
  for each row execute function vm.check_assignment_rule();

create table vm.CategoryRule (
  OrganizationID uuid not null constraint categoryrule_organization_exists references vm.Organization,
  ID uuid not null default vm.new_id(),
  SourceID uuid constraint categoryrule_source_exists references vm.Source,
  VulnerabilityTitle text,
  VulnerabilityCategory text,
  Category text not null,
  Active boolean not null default true,
  constraint categoryrule_pkey primary key (OrganizationID, ID),
  constraint categoryrule_has_a_condition check (coalesce(VulnerabilityTitle, VulnerabilityCategory) is not null)
);
comment on table vm.CategoryRule is 'The category a ticket gets: of the rules whose conditions all hold the oldest';
comment on column vm.CategoryRule.OrganizationID is 'Whose it is';
comment on column vm.CategoryRule.ID is 'Key of the row';
comment on column vm.CategoryRule.SourceID is 'Condition: found by this scanner product; null = any';
comment on column vm.CategoryRule.VulnerabilityTitle is 'Condition: the title is this; null = any';
comment on column vm.CategoryRule.VulnerabilityCategory is 'Condition: the scanner''s category is this; null = any';
comment on column vm.CategoryRule.Category is 'What the ticket gets';
comment on column vm.CategoryRule.Active is 'false: it does not hold';

create table vm.TagMap (
  OrganizationID uuid not null constraint tagmap_organization_exists references vm.Organization,
  ID uuid not null default vm.new_id(),
  CloudTag text not null,
  TicketingTag text not null,
  Options text not null default 'Overwrite',
  Active boolean not null default true,
  constraint tagmap_pkey primary key (OrganizationID, ID),
  constraint tagmap_is_unique unique (OrganizationID, CloudTag, TicketingTag),
  constraint tagmap_ticketingtag_is_known check (TicketingTag in ('hostname', 'assignmentgroup', 'labels', 'systemname')),
  constraint tagmap_options_is_append_or_overwrite check (Options in ('Append', 'Overwrite'))
);
comment on table vm.TagMap is 'Which tags of a device go into which field of its tickets';
comment on column vm.TagMap.OrganizationID is 'Whose it is';
comment on column vm.TagMap.ID is 'Key of the row';
comment on column vm.TagMap.CloudTag is 'Name of the tag, whatever its case';
comment on column vm.TagMap.TicketingTag is 'The field: hostname, assignmentgroup, labels or systemname';
comment on column vm.TagMap.Options is 'Append: behind what is there, with a comma; Overwrite. Labels are always appended';
comment on column vm.TagMap.Active is 'false: it does not hold';
