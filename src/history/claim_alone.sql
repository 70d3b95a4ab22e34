-- Pending -> in progress for one suspect, by the process that is there for it alone; claim.sql is the claim of all
-- other rows.
--
-- $1 runner, $2 JobHistory.ID, $3 whether its configuration is locked. Priority orders suspects among themselves
-- (suspects.sql). In its lane the place is its own: claim.sql leaves one free while a Runner row names it.
with me as materialized (
  select r.ID from Runner r where r.ID = $1 and r.AloneID = $2 and not r.Draining for key share
), taken as materialized (
  select h.ID, h.ConfigID
  from only JobHistory h
  join ClaimableConfig c on c.ID = h.ConfigID
  where h.ID = $2 and h.StatusID = 1 and h.Crashes >= 2 and h.NotBefore <= statement_timestamp()
    and exists (select from me)
    and (c.MaxInstances = 0
      or $3 and c.MaxInstances > (select coalesce(sum(k.Open), 0) from Claim k where k.ConfigID = c.ID))
  for no key update of h skip locked
), batch as (
  insert into Claim (RunnerID, ConfigID, HistoryIDs, Open)
  select $1, t.ConfigID, array[t.ID], 1 from taken t
  returning ID
)
update only JobHistory h
set StatusID = 2, ThreadID = $1, ClaimID = b.ID, Attempt = h.Attempt + 1,
    StartedDate = clock_timestamp(), PulseDate = clock_timestamp(), WaitingSince = null,
    StopReason = null, Progress = null
from taken t
cross join batch b
where h.ID = t.ID and h.StatusID = 1
returning h.ID as "id!", h.ClaimID as "claim!", h.Attempt as "attempt!", h.ConfigID as "config!", h.JobID as "job!",
  h.Payload::text as "payload!", h.CurrentIteration as "iteration!", h.ParentJobID as parent, h.DueDate as due,
  h.StartedDate as "started!", h.Priority as "priority!", h.NotBefore as "not_before!",
  extract(epoch from h.StartedDate - greatest(h.NotBefore, h.CreatedDate))::float8 as "waited_seconds!",
  1::bigint as "found!"
