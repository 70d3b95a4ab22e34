-- Pending -> in progress, for a batch of rows, in the order of Priority, NotBefore, ID.
--
-- $1 runner, $2 lanes (JobConfig.ID), $3 how many at most, $4 those lanes of $2 that are locked, $5 rows with so many
-- crashes are left for claim_alone.sql; $6..$8 Priority, NotBefore and ID of the row behind which it begins. A process
-- that waits to run such a row has a place reserved in its lane.
-- Of rows that were claimed the index keeps dead entries until it is vacuumed. Without a place to begin at, each claim of
-- a long drain would step over those of all claims before it.
-- The statement sees the newest counts only if it began after the limited lanes were locked, so it is a
-- statement of its own behind lock_lanes.sql. NO KEY UPDATE leaves foreign keys to the row alone; SKIP LOCKED
-- leaves a row that an operator is editing, and what is behind it is for claim_around.sql; Found says that there
-- was such a row. A lane that got its MaxInstances since the tick is not locked and waits for the next. A row is found by
-- one condition on its ID, `= any(array(...))` or a join: with both, each row of a batch costs as much as the batch is long.
-- A plan made while the table was small stays until the table is analyzed, and must not walk over every row then.
-- `StatusID = 1` instead of Ready keeps it off the index of the lanes; a lateral look-up that locks, and a LIMIT, which
-- lets the planner expect a tenth of the rows, keep it from beginning with JobHistory. A runner whose row is gone (reaped) or that drains takes nothing.
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
), candidate as materialized (
  select h.ID
  from lane
  cross join lateral (
    select h.ID, h.Priority, h.NotBefore
    from only JobHistory h
    where h.Ready and h.ConfigID = lane.ID and h.NotBefore <= statement_timestamp() and h.Crashes < $5
      and (h.Priority, h.NotBefore, h.ID) > ($6, $7, $8)
    order by h.Priority, h.NotBefore, h.ID
    limit lane.Room) h
  order by h.Priority, h.NotBefore, h.ID
  limit $3
), taken as materialized (
  select h.ID, h.ConfigID
  from only JobHistory h
  where h.ID = any(array(select c.ID from candidate c)) and h.StatusID = 1 and h.Crashes < $5
  for no key update skip locked
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
  (select count(*) from candidate) as "found!"
