-- The queue and the history in one table, and the small tables beside it that
-- answer "who runs what" without an index on anything that finishing changes.
--
-- Design. A row is written twice after its INSERT: when it is claimed and when it ends.
--  * Claiming changes `Ready`, the predicate of the claim index, and leaves that index.
--  * Finishing changes no indexed column, so that it is a heap-only update on the same
--    page (hence the low fillfactor). That is why nothing here indexes StatusID, ThreadID or
--    FinishedDate: `Claim` knows the running rows, one small row for each claimed batch.

create table vm.JobStatus (
  ID int primary key,
  Status text not null,
  constraint jobstatus_status_is_unique unique (Status)
);
comment on table vm.JobStatus is 'The meaning of JobHistory.StatusID';
insert into vm.JobStatus values
  (-1, 'CANCEL'), (0, 'UNKNOWN'), (1, 'PENDING'), (2, 'IN PROGRESS'), (3, 'COMPLETED'), (4, 'ERROR'), (5, 'CANCELED');

create table vm.Runner (
  ID uuid primary key,
  Host text not null,
  PID int not null,
  Version text not null,
  State text not null default 'running',
  Seq bigint not null default 0,
  Pulse timestamptz not null default clock_timestamp(),
  LeaseSeconds double precision not null,
  Workers int not null,
  Running int not null default 0,
  Tasks int not null default 0,
  Jobs int[] not null default '{}',
  Draining boolean not null default false,
  StartedDate timestamptz not null default clock_timestamp(),
  constraint runner_state_is_known check (State in ('running', 'draining', 'stopping'))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
comment on table vm.Runner is 'One row for each live daemon; a row that stops pulsing is removed by the others';
comment on column vm.Runner.Seq is 'Counts its pulses; others judge its life by this, never by clocks';
comment on column vm.Runner.Tasks is 'Alive tokio tasks in the process: a steady rise is a leak';
comment on column vm.Runner.Jobs is 'Job.ID of the jobs it has registered';
comment on column vm.Runner.Draining is 'Set true by hand or by rosterd runner drain: it claims nothing more';

create table vm.Claim (
  ID bigint generated always as identity primary key,
  RunnerID uuid not null,
  ConfigID uuid not null,
  HistoryIDs uuid[] not null,
  Open int not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index claim_config on vm.Claim (ConfigID);
create index claim_runner on vm.Claim (RunnerID);
comment on table vm.Claim is 'Rows a runner took in one go; Open of them are still in progress. Written with the rows themselves, in one transaction';

create table vm.CancelRequest (
  HistoryID uuid primary key,
  RunnerID uuid not null,
  RequestedDate timestamptz not null default clock_timestamp()
);
create index cancelrequest_runner on vm.CancelRequest (RunnerID);
comment on table vm.CancelRequest is 'Running rows an operator set to -1, for the runner that has them';

-- An idle runner arms a slot; the next INSERT disarms it and sends the hint. Several slots, so
-- that an operator's open transaction, which holds the one it disarmed, leaves others.
create table vm.WakeHint (
  Slot int primary key,
  Armed boolean not null
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
insert into vm.WakeHint select n, true from generate_series(1, 4) n;
comment on table vm.WakeHint is 'Who wants a NOTIFY for the next INSERT. NOTIFY takes a lock of the whole server at commit, so a busy runner asks for none';

create table vm.JobHistory (
  ID uuid not null default vm.new_id(),
  JobID int not null,
  ConfigID uuid not null,
  OrganizationID uuid not null,
  StatusID int not null,
  Ready boolean not null generated always as (StatusID = 1) stored,
  ParentJobID uuid,
  Identifier text,
  Priority int not null,
  Payload jsonb not null,
  NotBefore timestamptz not null,
  Attempt int not null default 0,
  CurrentIteration bigint not null default 0,
  Crashes int not null default 0,
  ThreadID uuid,
  ClaimID bigint,
  PulseDate timestamptz,
  StartedDate timestamptz,
  FinishedDate timestamptz,
  WaitingSince timestamptz,
  CancelDate timestamptz,
  CancelBy text,
  StopReason text,
  Error text,
  Result jsonb,
  Progress text,
  Origin text not null default 'operator',
  ScheduleID uuid,
  DueDate timestamptz,
  CreatedDate timestamptz not null,
  CreatedBy text not null,
  UpdatedDate timestamptz,
  UpdatedBy text,
  constraint jobhistory_pkey primary key (ID),
  constraint jobhistory_config_exists foreign key (ConfigID, JobID, OrganizationID)
    references vm.JobConfig (ID, JobID, OrganizationID),
  constraint jobhistory_parent_exists foreign key (ParentJobID) references vm.JobHistory (ID),
  constraint jobhistory_status_is_known check (StatusID in (-1, 1, 2, 3, 4, 5)),
  constraint jobhistory_in_progress_has_an_owner check (StatusID not in (2, -1) or (ThreadID is not null and ClaimID is not null)),
  constraint jobhistory_finished_has_a_date check ((StatusID in (3, 4, 5)) = (FinishedDate is not null)),
  constraint jobhistory_schedule_has_a_due_date check ((ScheduleID is null) = (DueDate is null)),
  constraint jobhistory_origin_is_known check (Origin in ('operator', 'autostart', 'schedule', 'job', 'rerun'))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_vacuum_insert_scale_factor = 0.05);

-- Each configuration is a lane of its own: rows parked behind a limit or an inactive
-- configuration are never walked over by the claims of others.
create index jobhistory_lane on vm.JobHistory (ConfigID, Priority, NotBefore, ID) where Ready;
-- When the next waiting row falls due; rows that were due when they were made are not in it.
create index jobhistory_due on vm.JobHistory (NotBefore) where Ready and NotBefore > CreatedDate;
create index jobhistory_parent on vm.JobHistory (ParentJobID) where ParentJobID is not null;
-- One row for each due time, whichever runner ticks: the promise of the schedules.
create unique index jobhistory_one_row_per_due_date on vm.JobHistory (ScheduleID, DueDate) where ScheduleID is not null;

comment on table vm.JobHistory is
  'One row for each run: the queue and the history. INSERT with StatusID 1 to run, UPDATE StatusID = -1 to cancel';
comment on column vm.JobHistory.StatusID is '-1 CANCEL, 1 PENDING, 2 IN PROGRESS, 3 COMPLETED, 4 ERROR, 5 CANCELED';
comment on column vm.JobHistory.Priority is 'Lower runs earlier; equal ones in the order of NotBefore, then ID';
comment on column vm.JobHistory.NotBefore is 'Does not start earlier';
comment on column vm.JobHistory.Attempt is 'Times it was started, in this iteration; a drain or an outage counts none';
comment on column vm.JobHistory.CurrentIteration is 'Finished iterations of a Continuous row';
comment on column vm.JobHistory.Crashes is 'Runners that died under it';
comment on column vm.JobHistory.ThreadID is 'Runner.ID of the runner that has it, or had it last';
comment on column vm.JobHistory.ClaimID is 'The claim it was taken by; with ThreadID and Attempt the fence of every write of its runner';
comment on column vm.JobHistory.WaitingSince is 'End of the last iteration of a waiting Continuous row; NotBefore is this plus WaitInSeconds';
comment on column vm.JobHistory.StopReason is 'Why it stopped, where its status alone does not say';
comment on column vm.JobHistory.Identifier is 'Free for the operator: what this run is about';
comment on column vm.JobHistory.Origin is 'Who put it on the queue: operator, autostart, schedule, job (as a child), rerun';
