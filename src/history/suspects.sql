-- Due suspects (rows that runners died under twice) for which a process may be started now, those with room first.
--
-- $1 jobs (Job.ID), $2 suspects not to be looked at now, $3 how many at most. Rows for which a process exists
-- already, here or elsewhere, are left out, and a lane gets no more processes than it could ever hold. The first step
-- stands by itself, so that it is always the small index that is read.
with suspect as materialized (
  select h.ID, h.ConfigID, h.Priority, h.NotBefore
  from only JobHistory h
  where h.Ready and h.Crashes >= 2 and h.NotBefore <= statement_timestamp()
    and h.JobID = any($1) and h.ID <> all($2)
    and not exists (select from Runner r where r.AloneID = h.ID)
), lane as materialized (
  select c.ID, c.MaxInstances,
    (select coalesce(sum(k.Open), 0) from Claim k where k.ConfigID = c.ID) as Running,
    (select count(*) from Runner r join only JobHistory h on h.ID = r.AloneID
     where r.AloneID is not null and h.Ready and h.ConfigID = c.ID) as Reserved
  from ClaimableConfig c
  where c.ID = any(array(select s.ConfigID from suspect s))
)
select s.ID as "id!"
from suspect s
join lane l on l.ID = s.ConfigID
where l.MaxInstances = 0 or l.MaxInstances > l.Reserved
order by l.MaxInstances = 0 or l.MaxInstances > l.Running + l.Reserved desc, s.Priority, s.NotBefore, s.ID
limit $3
