-- The one statement of an idle tick: which lanes have a due row and room, when the next row falls due,
-- and whether a schedule wants to be served.
-- `offset 0` keeps the look into a lane a look into its index. Without it a plan made while the table was small may
-- turn it into a walk over every pending row, and a cached plan stays until the table is analyzed.
-- `limited` lanes need their JobConfig row locked before room is counted; `free` ones do not.
--
-- $1 jobs (Job.ID), $2 rows with fewer crashes are for the ordinary claim. The others are suspects: they run alone
-- (engine/alone.rs), and where a process waits to run one, its lane keeps a place for it.
with reserved as materialized (
  select h.ConfigID, count(*) as Places
  from only JobHistory h
  where h.ID = any(array(select r.AloneID from Runner r where r.AloneID is not null)) and h.StatusID = 1
  group by h.ConfigID
), lane as materialized (
  select c.ID, c.MaxInstances
  from ClaimableConfig c
  where c.JobID = any($1)
    and exists (
      select from only JobHistory h
      where h.Ready and h.ConfigID = c.ID and h.NotBefore <= statement_timestamp() and h.Crashes < $2
      offset 0)
    and (c.MaxInstances = 0
      or c.MaxInstances > (select coalesce(sum(k.Open), 0) from Claim k where k.ConfigID = c.ID)
        + coalesce((select r.Places from reserved r where r.ConfigID = c.ID), 0))
)
select
  array(select ID from lane where MaxInstances = 0) as "free!",
  array(select ID from lane where MaxInstances > 0) as "limited!",
  (select extract(epoch from min(h.NotBefore) - statement_timestamp())::float8
   from only JobHistory h
   where h.Ready and h.NotBefore > h.CreatedDate and h.NotBefore > statement_timestamp()) as next_due_seconds,
  exists (
    select from JobSchedule s
    where s.Active and s.Error is null and (s.NextRun is null or s.NextRun <= statement_timestamp())) as "schedules_due!",
  exists (
    select from only JobHistory h
    where h.Ready and h.Crashes >= 2 and h.JobID = any($1) and h.NotBefore <= statement_timestamp()) as "suspects_due!",
  exists (select from WakeHint w where not w.Armed) as "unarmed!"
