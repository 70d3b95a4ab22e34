-- Due suspects (rows that runners died under twice) for which a process may be started now, those with room first.
--
-- $1 jobs (Job.ID), $2 suspects not to be looked at now, $3 how many at most. Rows for which a process exists
-- already, here or elsewhere, are left out, and a lane gets no more processes than it could ever hold.
select h.ID as "id!"
from JobHistory h
join ClaimableConfig c on c.ID = h.ConfigID
cross join lateral (select coalesce(sum(k.Open), 0) as Open from Claim k where k.ConfigID = c.ID) running
cross join lateral (
  select count(*) as Places
  from Runner r join JobHistory o on o.ID = r.AloneID and o.Ready
  where o.ConfigID = c.ID) reserved
where h.Ready and h.Crashes >= 2 and h.NotBefore <= statement_timestamp()
  and h.JobID = any($1) and h.ID <> all($2)
  and not exists (select from Runner r where r.AloneID = h.ID)
  and (c.MaxInstances = 0 or c.MaxInstances > reserved.Places)
order by c.MaxInstances = 0 or c.MaxInstances > running.Open + reserved.Places desc, h.Priority, h.NotBefore, h.ID
limit $3
