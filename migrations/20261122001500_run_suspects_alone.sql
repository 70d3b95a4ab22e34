-- A job that kills its process kills its neighbours' attempts too, and whoever shares three such deaths would end
-- as 'poison' with it. So a row that two runners died under (a suspect) gets its last chance alone, in a process of
-- its own: whatever it does there meets nobody else.
--
-- That process is a runner like any other, with a lease and claims of its own. AloneID names the one row it is there
-- for. While that row is PENDING, the lane of its configuration keeps a place free for it (claim.sql): a backlog of
-- ordinary rows would else take every place before the new process has asked for one.

alter table vm.Runner add column AloneID uuid;
comment on column vm.Runner.AloneID is
  'Set for a process that another daemon started for this one JobHistory row, because runners died under it';
-- So small that reading the table would do, were it not that the engine's sessions plan without sequential scans: one
-- of them in a plan costs so much that the planner no longer cares how the rest of it is done.
create index runner_alone on vm.Runner (AloneID) where AloneID is not null;

-- Few rows at any time. It holds back no heap-only update: a row that finishes does not change Crashes, and one that
-- is rescued becomes Ready, which moves it anyway.
create index jobhistory_suspect on vm.JobHistory (Priority, NotBefore, ID) where Ready and Crashes >= 2;

comment on column vm.JobHistory.Crashes is
  'Runners that died under it; after the second it runs alone in a process of its own, after the third it ends as poison';

create or replace view vm.JobHistoryWaiting as
with alive as materialized (
  select r.Jobs, r.Draining or r.State <> 'running' as Draining,
    r.Workers - coalesce((select sum(k.Open) from vm.Claim k where k.RunnerID = r.ID), 0) as Free
  from vm.Runner r
  where r.AloneID is null and r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second'
), running as materialized (
  select k.ConfigID, sum(k.Open) as n from vm.Claim k group by k.ConfigID
)
select h.ID,
  case
    when not c.Active then 'config inactive'
    when not o.Active then format('organization %s inactive', o.Code)
    when paused.Source is not null then format('source paused: %s is inactive', paused.Source)
    when h.NotBefore > clock_timestamp() then
      case when h.WaitingSince is not null then 'not due: waits between iterations'
           when h.Attempt > 0 then format('not due: waits to retry after attempt %s', h.Attempt)
           else 'not due' end
    when not exists (select from alive) then 'no runner alive'
    when not exists (select from alive a where h.JobID = any(a.Jobs)) then format('no runner knows the job %s', j.Struct)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining) then 'runners draining'
    when c.MaxInstances > 0 and coalesce(r.n, 0) >= c.MaxInstances then
      format('at MaxInstances %s/%s', r.n, c.MaxInstances)
    -- Needs no free worker, so it is never said to wait for one.
    when h.Crashes >= 2 then format('runs alone, because runners died under it %s times', h.Crashes)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining and a.Free > 0) then
      'all workers busy'
    else 'about to start'
  end as Reason,
  case when c.Active and o.Active and paused.Source is null and h.NotBefore > clock_timestamp() then h.NotBefore end as Until,
  j.Struct, h.ConfigID, h.OrganizationID, h.Priority, h.NotBefore
from vm.JobHistory h
join vm.JobConfig c on c.ID = h.ConfigID
join vm.Job j on j.ID = h.JobID
join vm.Organization o on o.ID = h.OrganizationID
left join running r on r.ConfigID = h.ConfigID
left join lateral (
  select s.Source from vm.SourceConfig s
  where not s.Active and (s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
    or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = s.ID))
  limit 1) paused on true
where h.Ready;
