-- Vulnerability management, fourth part: scans that were asked for, and the tickets that wait for one.
--
-- States of a scan and who may write each edge:
--   intended (SourceKey null) -> queued: RescanJob, once the scanner has given it a key
--   queued, processing, paused -> each other, error, stopped, canceled: ScanSyncJob
--   any of these -> finished: ScanSyncJob, in one transaction with the row of ScanCloseJob
-- The row is written before the scanner is asked, with its ID as the name of the scan there. Whoever finds an intended
-- scan of his own asks the scanner whether it has one of that name.

create table vm.ScanSummary (
  OrganizationID uuid not null,
  ID uuid not null default vm.new_id(),
  ScannerSourceConfigID uuid not null,
  SourceKey text,
  Type text not null,
  GroupID text not null,
  ScanStatus text not null default 'intended',
  Request jsonb not null,
  Scan jsonb,
  ScanClosePayload jsonb not null,
  ParentJobID uuid not null,
  Problem text,
  CreatedDate timestamptz not null default clock_timestamp(),
  UpdatedDate timestamptz not null default clock_timestamp(),
  constraint scansummary_pkey primary key (OrganizationID, ID),
  constraint scansummary_sourcekey_is_unique_in_its_scanner unique (OrganizationID, ScannerSourceConfigID, SourceKey),
  constraint scansummary_scanner_is_of_the_same_organization
    foreign key (OrganizationID, ScannerSourceConfigID) references vm.SourceConfig (OrganizationID, ID),
  constraint scansummary_type_is_known check (Type in ('NORMAL', 'DECOMMISSIONED', 'PASSIVE', 'EXCEPTIONS', 'SCHEDULED')),
  constraint scansummary_scanstatus_is_known check
    (ScanStatus in ('intended', 'queued', 'processing', 'paused', 'finished', 'error', 'stopped', 'canceled')),
  constraint scansummary_has_a_key_once_it_is_queued check ((SourceKey is null) <= (ScanStatus in ('intended', 'error', 'canceled')))
);
create index scansummary_unfinished on vm.ScanSummary (OrganizationID, ScannerSourceConfigID)
  where ScanStatus in ('intended', 'queued', 'processing', 'paused');
create index scansummary_parent on vm.ScanSummary (OrganizationID, ParentJobID);
comment on table vm.ScanSummary is 'A scan that RescanJob asked for; ScanSyncJob follows it';
comment on column vm.ScanSummary.OrganizationID is 'Whose it is';
comment on column vm.ScanSummary.ID is 'Key of the row, and the name of the scan at the scanner';
comment on column vm.ScanSummary.ScannerSourceConfigID is 'The scanner';
comment on column vm.ScanSummary.SourceKey is 'The scanner''s reference of it; null until it was begun there';
comment on column vm.ScanSummary.Type is 'Why: NORMAL, DECOMMISSIONED, PASSIVE, EXCEPTIONS or SCHEDULED';
comment on column vm.ScanSummary.GroupID is 'The scanner''s group of the devices';
comment on column vm.ScanSummary.ScanStatus is
  'intended, queued, processing, paused; then finished, error, stopped or canceled';
comment on column vm.ScanSummary.Request is 'What the scanner was asked for';
comment on column vm.ScanSummary.Scan is 'What the connector remembers of it';
comment on column vm.ScanSummary.ScanClosePayload is 'Payload of the ScanCloseJob that follows';
comment on column vm.ScanSummary.ParentJobID is 'JobHistory.ID of the RescanJob; no foreign key, because history is archived';
comment on column vm.ScanSummary.Problem is 'Why it came to nothing';
comment on column vm.ScanSummary.CreatedDate is 'When it was intended';
comment on column vm.ScanSummary.UpdatedDate is 'When its status changed last';

-- One row for each ticket that waits for a scan: written with the row of the RescanJob, in one transaction; taken away with
-- the change of the ticket, in one transaction. In between no other rescan takes the ticket.
create table vm.TicketRescan (
  OrganizationID uuid not null,
  TicketID uuid not null,
  HistoryID uuid not null,
  ScanSummaryID uuid,
  FailedDate timestamptz,
  CreatedDate timestamptz not null default clock_timestamp(),
  constraint ticketrescan_pkey primary key (OrganizationID, TicketID),
  constraint ticketrescan_ticket_is_of_the_same_organization
    foreign key (OrganizationID, TicketID) references vm.Ticket (OrganizationID, ID) on delete cascade,
  constraint ticketrescan_scan_is_of_the_same_organization
    foreign key (OrganizationID, ScanSummaryID) references vm.ScanSummary (OrganizationID, ID)
);
create index ticketrescan_history on vm.TicketRescan (OrganizationID, HistoryID);
create index ticketrescan_scan on vm.TicketRescan (OrganizationID, ScanSummaryID);
comment on table vm.TicketRescan is 'Tickets that wait for a scan, so that none is in two at once';
comment on column vm.TicketRescan.OrganizationID is 'Whose it is';
comment on column vm.TicketRescan.TicketID is 'The ticket';
comment on column vm.TicketRescan.HistoryID is 'JobHistory.ID of the RescanJob, then of the ScanCloseJob';
comment on column vm.TicketRescan.ScanSummaryID is 'The scan, once one is intended';
comment on column vm.TicketRescan.FailedDate is 'When its scan came to nothing; RescanQueueJob waits a while before the next';
comment on column vm.TicketRescan.CreatedDate is 'When RescanQueueJob took it';

-- Tickets that want to be looked at again and wait for no scan. Its body is parsed now, so it is folded into the statements
-- that ask it.
create function vm.tickets_to_rescan(organization uuid, engine uuid, scanner uuid, kind text, exceptions text[],
    agent_delay_minutes int, retry_after_seconds int)
  returns table (TicketID uuid, Title text, GroupID text, DueDate timestamptz)
  language sql stable
begin atomic
  select k.ID, k.Title, d.GroupID, k.DueDate
  from vm.Ticket k
  join vm.Detection t on t.OrganizationID = k.OrganizationID and t.ID = k.DetectionID
  join vm.Device d on d.OrganizationID = t.OrganizationID and d.ID = t.DeviceID
  join vm.AssetGroup g on g.OrganizationID = d.OrganizationID and g.ScannerSourceConfigID = d.SourceConfigID
    and g.GroupID = d.GroupID and not g.RescanQueueSkip
  where k.OrganizationID = organization and k.SourceConfigID = engine and d.SourceConfigID = scanner and k.Title is not null
    and case kind
      when 'NORMAL' then k.Status = 'Resolved-Remediated'
      when 'DECOMMISSIONED' then k.Status = 'Resolved-Decommissioned'
      when 'PASSIVE' then k.Status in ('Open', 'In-Progress', 'Reopened', 'Resolved-Exception')
        and (k.DueDate <= now() + interval '15 days' or k.CreatedDate <= now() - interval '20 days')
      when 'EXCEPTIONS' then k.Status = 'Closed-Exception'
        and (k.ExceptionDate <= now() + interval '30 days' or k.CERF = any (exceptions))
    end
    -- Nobody waits for these two, and nothing about the ticket changes by looking.
    and (kind not in ('PASSIVE', 'EXCEPTIONS') or k.LastChecked is null or k.LastChecked < now() - interval '20 hours')
    and (agent_delay_minutes is null or d.TrackingMethod <> 'AGENT'
      or k.UpdatedDate <= now() - agent_delay_minutes * interval '1 minute')
    and not exists (
      select from vm.TicketRescan r
      where r.OrganizationID = k.OrganizationID and r.TicketID = k.ID
        and (r.FailedDate is null or r.FailedDate > now() - retry_after_seconds * interval '1 second'));
end;
comment on function vm.tickets_to_rescan(uuid, uuid, uuid, text, text[], int, int) is
  'Which tickets RescanQueueJob would put on the queue; kind is NORMAL, DECOMMISSIONED, PASSIVE or EXCEPTIONS';
