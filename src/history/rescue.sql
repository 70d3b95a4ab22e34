-- Rows of runners that are gone -> pending again, or the end that OnRunnerLoss or a cancel asks for.
-- The Runner row is the lease: who has none owns nothing. Guarded so that a newer state is never overwritten:
-- the row must still name the dead runner and the very claim. A row that its runner settled or put back is no longer
-- in progress, so it counts no crash. There is no pause before the next start: after one crash the row may be as
-- innocent as thousands of others and shall run at once, after two it runs where it meets nobody.
with dead as materialized (
  select k.ID, k.RunnerID, k.HistoryIDs
  from Claim k
  where k.Open > 0 and not exists (select from Runner r where r.ID = k.RunnerID)
  order by k.ID
  limit 100
  for update skip locked
), victim as materialized (
  select h.ID
  from dead d
  cross join lateral unnest(d.HistoryIDs) as i (ID)
  cross join lateral (
    select h.ID from only JobHistory h
    where h.ID = i.ID and h.ThreadID = d.RunnerID and h.ClaimID = d.ID and h.StatusID in (2, -1)
    for no key update skip locked) h
), rescued as (
  update only JobHistory h
  set Crashes = h.Crashes + 1,
      (StatusID, NotBefore, FinishedDate, StopReason, Error) = (
        select n.Status,
          case when n.Status = 1 then statement_timestamp() else h.NotBefore end,
          case when n.Status <> 1 then clock_timestamp() end,
          case when n.Status = 4 and c.OnRunnerLoss = 'retry' then 'poison' else 'runner_lost' end,
          case when n.Status = 4 then format('the runner died under it (%s times)', h.Crashes + 1) else h.Error end
        from (select case
          when h.StatusID = -1 then 5
          when c.OnRunnerLoss = 'error' or h.Crashes >= 2 then 4
          else 1 end as Status) n)
  from JobConfig c
  where h.ID = any(array(select v.ID from victim v)) and c.ID = h.ConfigID
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
