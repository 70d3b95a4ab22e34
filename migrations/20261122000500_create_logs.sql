-- What jobs said. Written by the daemon in batches; never in the way of a job.
create table vm.LogType (
  ID int primary key,
  Type text not null,
  Description text not null,
  constraint logtype_type_is_unique unique (Type)
);
comment on table vm.LogType is 'The meaning of Logs.TypeID';
insert into vm.LogType values
  (0, 'INFO', 'Information'), (1, 'WARN', 'Warning'), (2, 'ERR', 'Error'), (3, 'CRIT', 'Critical'),
  (4, 'FATL', 'Fatal'), (5, 'DBUG', 'Debug');

create table vm.Logs (
  ID bigint generated always as identity primary key,
  TypeID int not null constraint logs_type_exists references vm.LogType,
  Log text not null,
  Error text,
  CreateDate timestamptz not null,
  JobHistoryID uuid not null
);
create index logs_job on vm.Logs (JobHistoryID, ID);
comment on table vm.Logs is 'Log lines of jobs: select CreateDate, Log from Logs where JobHistoryID = ... order by ID';
comment on column vm.Logs.JobHistoryID is 'The row it belongs to; no foreign key, so that a line is never lost to a race with retention';
