-- Rows of runners that are gone -> pending again, or the end that OnRunnerLoss or a cancel asks for.
-- The Runner row is the lease: who has none owns nothing. Guarded so that a newer state is never overwritten:
-- the row must still name the dead runner and the very claim. A row that its runner settled or put back is no longer
-- in progress, so it counts no crash. There is no pause before the next start: after one crash the row may be as
-- innocent as thousands of others and shall run at once, after two it runs where it meets nobody.
-- `= any(array(...))` keeps every plan on the primary key, see claim.sql.
with dead as materialized (
  select k.ID, k.RunnerID, k.HistoryIDs
  from Claim k
  where k.Open > 0 and not exists (select from Runner r where r.ID = k.RunnerID)
  order by k.ID
  limit 100
  for update skip locked
), victim as materialized (
  select h.ID, h.StatusID, h.Crashes, c.OnRunnerLoss
  from dead d
  cross join lateral unnest(d.HistoryIDs) as i (ID)
  join JobHistory h on h.ID = i.ID and h.ThreadID = d.RunnerID and h.ClaimID = d.ID and h.StatusID in (2, -1)
  join JobConfig c on c.ID = h.ConfigID
  where h.ID = any(array(select unnest(x.HistoryIDs) from dead x))
  for no key update of h skip locked
), rescued as (
  update JobHistory h
  set StatusID = n.Status,
      Crashes = h.Crashes + 1,
      NotBefore = case when n.Status = 1 then statement_timestamp() else h.NotBefore end,
      FinishedDate = case when n.Status <> 1 then clock_timestamp() end,
      StopReason = case when n.Status = 4 and v.OnRunnerLoss = 'retry' then 'poison' else 'runner_lost' end,
      Error = case when n.Status = 4 then format('the runner died under it (%s times)', h.Crashes + 1) else h.Error end
  from victim v
  cross join lateral (select case
    when v.StatusID = -1 then 5
    when v.OnRunnerLoss = 'error' or v.Crashes >= 2 then 4
    else 1 end as Status) n
  where h.ID = v.ID and h.ID = any(array(select x.ID from victim x))
  returning h.ID, h.StatusID, h.ClaimID
), closed as (
  update Claim k
  set Open = k.Open - r.n
  from (select r.ClaimID, count(*)::int as n from rescued r group by r.ClaimID) r
  where k.ID = r.ClaimID
), answered as (
  delete from CancelRequest q using rescued r where q.HistoryID = r.ID
)
select r.ID as "id!", r.StatusID as "status!" from rescued r
