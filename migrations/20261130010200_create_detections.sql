-- Vulnerability management, second part: what scanners know of vulnerabilities, what they found where, and what shall be
-- ignored of it.

create table vm.VulnerabilityInfo (
  OrganizationID uuid not null constraint vulnerabilityinfo_organization_exists references vm.Organization,
  ID uuid not null default vm.new_id(),
  SourceID uuid not null constraint vulnerabilityinfo_source_exists references vm.Source,
  SourceVulnID text not null,
  Title text not null,
  Severity text not null default 'unknown',
  CVSS numeric(3, 1),
  CVSS3 numeric(3, 1),
  Description text not null default '',
  Threat text not null default '',
  Solution text not null default '',
  Category text,
  Patchable boolean,
  Software text,
  SourceUpdated timestamptz,
  CreatedDate timestamptz not null default clock_timestamp(),
  UpdatedDate timestamptz not null default clock_timestamp(),
  constraint vulnerabilityinfo_pkey primary key (OrganizationID, ID),
  constraint vulnerabilityinfo_is_one_per_source_and_identifier unique (OrganizationID, SourceID, SourceVulnID),
  constraint vulnerabilityinfo_sourcevulnid_is_1_to_255_characters check (length(SourceVulnID) between 1 and 255),
  constraint vulnerabilityinfo_severity_is_known
    check (Severity in ('unknown', 'info', 'low', 'medium', 'high', 'critical')),
  constraint vulnerabilityinfo_cvss_is_0_to_10 check (CVSS between 0 and 10),
  constraint vulnerabilityinfo_cvss3_is_0_to_10 check (CVSS3 between 0 and 10)
);
comment on table vm.VulnerabilityInfo is 'What a scanner product knows of a vulnerability; written by VulnSyncJob and AssetSyncJob';
comment on column vm.VulnerabilityInfo.OrganizationID is 'Whose it is';
comment on column vm.VulnerabilityInfo.ID is 'Key of the row';
comment on column vm.VulnerabilityInfo.SourceID is 'The scanner product, whichever connection read it';
comment on column vm.VulnerabilityInfo.SourceVulnID is 'The product''s identifier of it';
comment on column vm.VulnerabilityInfo.Title is 'One line; the identifier while nothing else is known';
comment on column vm.VulnerabilityInfo.Severity is 'The scanner''s word: unknown, info, low, medium, high or critical';
comment on column vm.VulnerabilityInfo.CVSS is 'CVSS version 2 base score, 0 to 10';
comment on column vm.VulnerabilityInfo.CVSS3 is 'CVSS version 3 base score, 0 to 10';
comment on column vm.VulnerabilityInfo.Description is 'What it is';
comment on column vm.VulnerabilityInfo.Threat is 'Why it matters';
comment on column vm.VulnerabilityInfo.Solution is 'What to do about it';
comment on column vm.VulnerabilityInfo.Category is 'The scanner''s own category';
comment on column vm.VulnerabilityInfo.Patchable is 'Whether there is a patch; null: not known';
comment on column vm.VulnerabilityInfo.Software is 'Affected software';
comment on column vm.VulnerabilityInfo.SourceUpdated is 'When the scanner''s knowledge of it changed last, by its clock';
comment on column vm.VulnerabilityInfo.CreatedDate is 'When it was first stored';
comment on column vm.VulnerabilityInfo.UpdatedDate is 'When something about it changed last';

create table vm.VulnerabilityReference (
  OrganizationID uuid not null,
  VulnerabilityID uuid not null,
  RefType text not null,
  Reference text not null,
  constraint vulnerabilityreference_pkey primary key (OrganizationID, VulnerabilityID, RefType, Reference),
  constraint vulnerabilityreference_vulnerability_is_of_its_organization
    foreign key (OrganizationID, VulnerabilityID) references vm.VulnerabilityInfo (OrganizationID, ID) on delete cascade,
  constraint vulnerabilityreference_reftype_is_known check (RefType in ('CVE', 'CCE', 'MS', 'VENDOR')),
  constraint vulnerabilityreference_reference_is_1_to_2048_characters check (length(Reference) between 1 and 2048)
);
comment on table vm.VulnerabilityReference is 'What others call a vulnerability';
comment on column vm.VulnerabilityReference.OrganizationID is 'Whose it is';
comment on column vm.VulnerabilityReference.VulnerabilityID is 'The vulnerability';
comment on column vm.VulnerabilityReference.RefType is 'Who gives the identifier: CVE, CCE, MS or VENDOR';
comment on column vm.VulnerabilityReference.Reference is 'The identifier or address';

-- How bad it is, by the version of CVSS an organization goes by, else by the other one, else by the scanner's word: then it
-- is the least score of that rating (CVSS 3.1, section 5).
create function vm.vulnerability_score(cvss_version int, cvss numeric, cvss3 numeric, severity text) returns numeric
  language sql immutable parallel safe
  return coalesce(
    case when cvss_version = 3 then cvss3 else cvss end,
    case when cvss_version = 3 then cvss else cvss3 end,
    case severity when 'critical' then 9.0 when 'high' then 7.0 when 'medium' then 4.0 when 'low' then 0.1
      when 'info' then 0.0 end);
comment on function vm.vulnerability_score(int, numeric, numeric, text) is
  'The score by which tickets are made, 0 to 10; null where a scanner says nothing';

create table vm.IgnoreType (
  ID int primary key,
  Type text not null,
  constraint ignoretype_type_is_unique unique (Type)
);
comment on table vm.IgnoreType is 'The meaning of Ignore.TypeID';
comment on column vm.IgnoreType.ID is 'The number';
comment on column vm.IgnoreType.Type is 'Its meaning';
insert into vm.IgnoreType values (0, 'EXCEPTION'), (1, 'FALSEPOSITIVE'), (2, 'DECOMMASSET');

create table vm.Ignore (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  SourceConfigID uuid not null,
  TypeID int not null constraint ignore_type_exists references vm.IgnoreType,
  DeviceID uuid,
  VulnerabilityID uuid,
  Port int,
  Protocol text,
  OSRegex text,
  HostnameRegex text,
  DeviceIDRegex text,
  DueDate timestamptz,
  DeviceLastAssessed timestamptz,
  Approval text not null default '',
  Active boolean not null default true,
  CreatedDate timestamptz not null default clock_timestamp(),
  CreatedBy text not null default session_user,
  UpdatedDate timestamptz,
  UpdatedBy text,
  constraint ignore_pkey primary key (OrganizationID, ID),
  constraint ignore_scanner_is_of_the_same_organization
    foreign key (OrganizationID, SourceConfigID) references vm.SourceConfig (OrganizationID, ID),
  constraint ignore_device_is_of_the_same_organization
    foreign key (OrganizationID, DeviceID) references vm.Device (OrganizationID, ID) on delete cascade,
  constraint ignore_vulnerability_is_of_the_same_organization
    foreign key (OrganizationID, VulnerabilityID) references vm.VulnerabilityInfo (OrganizationID, ID) on delete cascade,
  constraint ignore_port_is_0_to_65535 check (Port between 0 and 65535),
  constraint ignore_decommission_names_a_whole_device
    check (TypeID <> 2 or DeviceID is not null and VulnerabilityID is null and Port is null and Protocol is null),
  constraint ignore_exception_has_an_end check (TypeID <> 0 or DueDate is not null),
  constraint ignore_without_a_device_has_a_rule check (
    DeviceID is not null or VulnerabilityID is not null
    or coalesce(OSRegex, HostnameRegex, DeviceIDRegex) is not null),
  constraint ignore_with_a_device_has_no_rule check (
    DeviceID is null or coalesce(OSRegex, HostnameRegex, DeviceIDRegex) is null),
  constraint ignore_is_unique unique nulls not distinct
    (OrganizationID, SourceConfigID, TypeID, DeviceID, VulnerabilityID, Port, Protocol, OSRegex, HostnameRegex, DeviceIDRegex)
);
comment on table vm.Ignore is
  'What gets no ticket: exceptions, false positives, decommissioned devices. Written by ExceptionJob and ScanCloseJob, and by hand';
comment on column vm.Ignore.OrganizationID is 'Whose it is';
comment on column vm.Ignore.ID is 'Key of the row';
comment on column vm.Ignore.SourceConfigID is 'The scanner whose detections it holds for';
comment on column vm.Ignore.TypeID is '0 = exception until DueDate, 1 = false positive, 2 = the device is gone';
comment on column vm.Ignore.DeviceID is 'The device; null = every device that the three expressions match';
comment on column vm.Ignore.VulnerabilityID is 'The vulnerability; null = all of them';
comment on column vm.Ignore.Port is 'The port; null = all of them';
comment on column vm.Ignore.Protocol is 'The protocol or place; null = all of them';
comment on column vm.Ignore.OSRegex is 'Regular expression on Device.OS, as by ~*; null = every one';
comment on column vm.Ignore.HostnameRegex is 'Regular expression on Device.HostName, as by ~*; null = every one';
comment on column vm.Ignore.DeviceIDRegex is 'Regular expression on Device.AssetID, as by ~*; null = every one';
comment on column vm.Ignore.DueDate is 'When an exception ends, when a device was decommissioned';
comment on column vm.Ignore.DeviceLastAssessed is
  'Of a decommissioned device: its LastAssessed at that time. A later assessment by the same scanner''s clock brings it back';
comment on column vm.Ignore.Approval is 'Who allowed it: number of the exception, or key of the ticket';
comment on column vm.Ignore.Active is 'false: it holds no more, and stays for the record';
comment on column vm.Ignore.CreatedDate is 'When it was written';
comment on column vm.Ignore.CreatedBy is 'Under which login';
comment on column vm.Ignore.UpdatedDate is 'When it was changed last';
comment on column vm.Ignore.UpdatedBy is 'Under which login';

create function vm.check_ignore() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  perform check_regex(new.OSRegex, 'Ignore: OSRegex', 'ignore_osregex_is_a_regular_expression');
  perform check_regex(new.HostnameRegex, 'Ignore: HostnameRegex', 'ignore_hostnameregex_is_a_regular_expression');
  perform check_regex(new.DeviceIDRegex, 'Ignore: DeviceIDRegex', 'ignore_deviceidregex_is_a_regular_expression');
  if new.TypeID = 0 and new.DueDate is null then
    raise exception using errcode = 'check_violation', constraint = 'ignore_exception_has_an_end',
      message = 'Ignore: an exception (TypeID 0) needs a DueDate',
      hint = 'Give the day on which it ends; for ever is TypeID 1, a false positive.';
  end if;
  if new.DeviceID is null and new.VulnerabilityID is null
      and coalesce(new.OSRegex, new.HostnameRegex, new.DeviceIDRegex) is null then
    raise exception using errcode = 'check_violation', constraint = 'ignore_without_a_device_has_a_rule',
      message = 'Ignore: this would silence every detection of the scanner',
      hint = 'Give a DeviceID, a VulnerabilityID, or one of OSRegex, HostnameRegex and DeviceIDRegex.';
  end if;
  -- Until the scanner sees the device again: later than it has by now.
  if new.TypeID = 2 and new.Active
      and (new.DeviceLastAssessed is null or tg_op = 'UPDATE' and not old.Active
        and new.DeviceLastAssessed is not distinct from old.DeviceLastAssessed) then
    select d.LastAssessed into new.DeviceLastAssessed
      from Device d where d.OrganizationID = new.OrganizationID and d.ID = new.DeviceID;
  end if;
  return new;
end $f$;
create trigger ignore_check before insert or update on vm.Ignore
  for each row execute function vm.check_ignore();
create trigger ignore_stamp before update on vm.Ignore
  for each row execute function vm.stamp_update();

create table vm.DetectionStatus (
  ID int primary key,
  Status text not null,
  Name text not null,
  constraint detectionstatus_status_is_unique unique (Status)
);
comment on table vm.DetectionStatus is 'What a scanner says of a detection';
comment on column vm.DetectionStatus.ID is 'Number of the status';
comment on column vm.DetectionStatus.Status is 'The status';
comment on column vm.DetectionStatus.Name is 'The same for people';
insert into vm.DetectionStatus values
  (1, 'new', 'New'), (2, 'active', 'Active'), (3, 'reopened', 'Reopened'), (4, 'fixed', 'Fixed'),
  (5, 'vulnerable', 'Vulnerable'), (6, 'exceptioned', 'Exceptioned'), (7, 'dead host', 'Dead host'),
  (8, 'potential', 'Potential'), (9, 'informational', 'Informational'), (10, 'unknown', 'Not known');

create table vm.Detection (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  DeviceID uuid not null,
  VulnerabilityID uuid not null,
  Port int not null default 0,
  Protocol text not null default '',
  DetectionStatusID int not null constraint detection_status_exists references vm.DetectionStatus,
  IgnoreID uuid,
  ParentDetectionID uuid,
  AlertDate timestamptz not null,
  LastFound timestamptz,
  LastUpdated timestamptz,
  TimesSeen int not null default 1,
  ActiveKernel boolean,
  Proof text not null default '',
  CreatedDate timestamptz not null default clock_timestamp(),
  UpdatedDate timestamptz not null default clock_timestamp(),
  constraint detection_pkey primary key (OrganizationID, ID),
  constraint detection_is_one_per_device_vulnerability_port_and_protocol
    unique (OrganizationID, DeviceID, VulnerabilityID, Port, Protocol),
  constraint detection_device_is_of_the_same_organization
    foreign key (OrganizationID, DeviceID) references vm.Device (OrganizationID, ID) on delete cascade,
  constraint detection_vulnerability_is_of_the_same_organization
    foreign key (OrganizationID, VulnerabilityID) references vm.VulnerabilityInfo (OrganizationID, ID),
  constraint detection_ignore_is_of_the_same_organization
    foreign key (OrganizationID, IgnoreID) references vm.Ignore (OrganizationID, ID),
  constraint detection_parent_is_of_the_same_organization
    foreign key (OrganizationID, ParentDetectionID) references vm.Detection (OrganizationID, ID),
  constraint detection_port_is_0_to_65535 check (Port between 0 and 65535),
  constraint detection_protocol_is_0_to_300_characters check (length(Protocol) <= 300)
) with (fillfactor = 80);
create index detection_ignore on vm.Detection (OrganizationID, IgnoreID) where IgnoreID is not null;
create index detection_vulnerability on vm.Detection (OrganizationID, VulnerabilityID);
comment on table vm.Detection is
  'A vulnerability at a device, as a scanner found it; written by AssetSyncJob and ScanCloseJob, read by TicketingJob';
comment on column vm.Detection.OrganizationID is 'Whose it is';
comment on column vm.Detection.ID is 'Key of the row';
comment on column vm.Detection.DeviceID is 'Where';
comment on column vm.Detection.VulnerabilityID is 'What';
comment on column vm.Detection.Port is 'The port it was found at; 0 = none';
comment on column vm.Detection.Protocol is 'tcp, udp, or another place at the device; may be empty';
comment on column vm.Detection.DetectionStatusID is 'What the scanner says now';
comment on column vm.Detection.IgnoreID is 'Why it gets no ticket; null: nothing holds one back';
comment on column vm.Detection.ParentDetectionID is 'The detection it is a part of';
comment on column vm.Detection.AlertDate is 'When it was found first, by the scanner''s clock, else when it was stored';
comment on column vm.Detection.LastFound is 'When it was found last, by the scanner''s clock';
comment on column vm.Detection.LastUpdated is 'When the scanner looked last, by its clock';
comment on column vm.Detection.TimesSeen is 'How often the scanner found it';
comment on column vm.Detection.ActiveKernel is 'Of a kernel: whether it is the one that runs; null: it is no kernel, or not known';
comment on column vm.Detection.Proof is 'What the scanner saw';
comment on column vm.Detection.CreatedDate is 'When it was first stored';
comment on column vm.Detection.UpdatedDate is 'When something about it changed last';

-- The ignore that holds for each detection of these devices, or none. Of several the device's own goes before a rule, and
-- that of a decommissioned device before all. Its body is parsed now, so it is folded into the statements that ask it.
create function vm.wanted_ignores(organization uuid, scanner uuid, devices uuid[])
  returns table (DeviceID uuid, DetectionID uuid, IsNow uuid, ShallBe uuid)
  language sql stable
begin atomic
  select d.ID, t.ID, t.IgnoreID, coalesce(own.ID, rule.ID)
  from vm.Device d
  join vm.Detection t on t.OrganizationID = d.OrganizationID and t.DeviceID = d.ID
  left join lateral (
    select i.ID from vm.Ignore i
    where i.OrganizationID = organization and i.DeviceID = d.ID and i.Active
      and (i.TypeID <> 0 or i.DueDate > now())
      -- One that has been seen again is gone no more.
      and (i.TypeID <> 2 or coalesce(d.LastAssessed <= coalesce(i.DeviceLastAssessed, '-infinity'), true))
      and (i.VulnerabilityID is null or i.VulnerabilityID = t.VulnerabilityID)
      and (i.Port is null or i.Port = t.Port) and (i.Protocol is null or i.Protocol = t.Protocol)
    order by i.TypeID desc, i.ID limit 1) own on true
  left join lateral (
    select i.ID from vm.Ignore i
    where i.OrganizationID = organization and i.SourceConfigID = scanner and i.DeviceID is null and i.Active
      and (i.TypeID <> 0 or i.DueDate > now())
      and not exists (
        select from vm.AssetGroup g
        where g.OrganizationID = organization and g.ScannerSourceConfigID = scanner and g.GroupID = d.GroupID
          and g.ExemptFromGlobalExceptions)
      and (i.VulnerabilityID is null or i.VulnerabilityID = t.VulnerabilityID)
      and (i.Port is null or i.Port = t.Port) and (i.Protocol is null or i.Protocol = t.Protocol)
      and (i.OSRegex is null or d.OS ~* i.OSRegex)
      and (i.HostnameRegex is null or d.HostName ~* i.HostnameRegex)
      and (i.DeviceIDRegex is null or d.AssetID ~* i.DeviceIDRegex)
    order by i.ID limit 1) rule on own.ID is null
  where d.OrganizationID = organization and d.SourceConfigID = scanner and d.ID = any (devices);
end;
comment on function vm.wanted_ignores(uuid, uuid, uuid[]) is
  'Which row of Ignore holds for each detection of these devices, and which one it has now';

-- Puts them on the detections: of these devices, or of all of the scanner, because a rule that was written, changed or has
-- ended a minute ago may concern any. What stays as it is is not written. Whoever writes detections holds their devices
-- locked, in the order of AssetID, so that two of them wait for each other instead of deadlocking.
create function vm.apply_ignores(organization uuid, scanner uuid, devices uuid[] default null) returns bigint
  language plpgsql volatile
  set search_path = vm, pg_catalog
as $f$
declare
  concerned uuid[];
  changed bigint;
begin
  if devices is null then
    devices := array(select d.ID from Device d where d.OrganizationID = organization and d.SourceConfigID = scanner);
  end if;
  concerned := array(
    select w.DeviceID from wanted_ignores(organization, scanner, devices) w where w.IsNow is distinct from w.ShallBe
    union
    select d.ID from Device d
    where d.OrganizationID = organization and d.ID = any (devices) and d.State = 'decommissioned'
      and not exists (
        select from Ignore i
        where i.OrganizationID = organization and i.DeviceID = d.ID and i.TypeID = 2 and i.Active
          and coalesce(d.LastAssessed <= coalesce(i.DeviceLastAssessed, '-infinity'), true)));
  if concerned = '{}' then
    return 0;
  end if;
  perform from Device d
    where d.OrganizationID = organization and d.ID = any (concerned)
    order by d.AssetID for no key update;
  -- A decommissioned device that the scanner saw again, by the scanner's own clock.
  update Ignore i set Active = false
    from Device d
    where i.OrganizationID = organization and i.DeviceID = any (concerned) and i.Active and i.TypeID = 2
      and d.OrganizationID = organization and d.ID = i.DeviceID
      and d.LastAssessed > coalesce(i.DeviceLastAssessed, '-infinity');
  update Device d set State = 'unknown', UpdatedDate = clock_timestamp()
    where d.OrganizationID = organization and d.ID = any (concerned) and d.State = 'decommissioned'
      and not exists (
        select from Ignore i
        where i.OrganizationID = organization and i.DeviceID = d.ID and i.TypeID = 2 and i.Active);
  update Detection t set IgnoreID = w.ShallBe, UpdatedDate = clock_timestamp()
    from wanted_ignores(organization, scanner, concerned) w
    where t.OrganizationID = organization and t.ID = w.DetectionID and w.IsNow is distinct from w.ShallBe;
  get diagnostics changed = row_count;
  return changed;
end $f$;
comment on function vm.apply_ignores(uuid, uuid, uuid[]) is
  'Puts the ignores of an organization''s scanner on its detections and returns how many changed';
create index ignore_device on vm.Ignore (OrganizationID, DeviceID) where Active;
