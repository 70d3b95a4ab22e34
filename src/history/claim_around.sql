-- claim.sql for when somebody holds rows locked: takes the rows behind them. It locks rows while it looks for them,
-- $3 of each lane at most, of which $3 in all are taken; so it is the exception, and $3 is small.
with me as materialized (
  select r.ID from Runner r where r.ID = $1 and not r.Draining for key share
), reserved as materialized (
  select h.ConfigID, count(*) as Places
  from only JobHistory h
  where h.ID = any(array(select r.AloneID from Runner r where r.AloneID is not null)) and h.StatusID = 1
  group by h.ConfigID
), lane as materialized (
  select c.ID,
    case when c.MaxInstances = 0 then $3
      else least($3, greatest(0, c.MaxInstances
        - (select coalesce(sum(k.Open), 0) from Claim k where k.ConfigID = c.ID)
        - coalesce((select r.Places from reserved r where r.ConfigID = c.ID), 0))) end as Room
  from ClaimableConfig c
  where c.ID = any($2) and (c.MaxInstances = 0 or c.ID = any($4)) and exists (select from me)
), taken as materialized (
  select h.ID, h.ConfigID
  from lane
  cross join lateral (
    select h.ID, h.ConfigID, h.Priority, h.NotBefore
    from only JobHistory h
    where h.Ready and h.ConfigID = lane.ID and h.NotBefore <= statement_timestamp() and h.Crashes < $5
    order by h.Priority, h.NotBefore, h.ID
    limit lane.Room
    for no key update skip locked) h
  order by h.Priority, h.NotBefore, h.ID
  limit $3
), batch as (
  insert into Claim (RunnerID, ConfigID, HistoryIDs, Open)
  select $1, t.ConfigID, array_agg(t.ID), count(*)::int from taken t group by t.ConfigID
  returning ID, ConfigID
)
update only JobHistory h
set StatusID = 2, ThreadID = $1, ClaimID = b.ID, Attempt = h.Attempt + 1,
    StartedDate = clock_timestamp(), PulseDate = clock_timestamp(), WaitingSince = null,
    StopReason = null, Progress = null
from (select * from taken limit $3) t
join batch b on b.ConfigID = t.ConfigID
where h.ID = t.ID and h.StatusID = 1
returning h.ID as "id!", h.ClaimID as "claim!", h.Attempt as "attempt!", h.ConfigID as "config!", h.JobID as "job!",
  h.Payload::text as "payload!", h.CurrentIteration as "iteration!", h.ParentJobID as parent, h.DueDate as due,
  h.StartedDate as "started!", h.Priority as "priority!", h.NotBefore as "not_before!",
  extract(epoch from h.StartedDate - greatest(h.NotBefore, h.CreatedDate))::float8 as "waited_seconds!",
  (select count(*) from taken) as "found!"
