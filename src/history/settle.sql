-- In progress -> what became of it, for a batch of runs, each fenced by (runner, claim, attempt, status).
--
-- $1 runner; $2..$10 one array element a run: id, claim, attempt, verdict (history::Verdict), error, result,
-- stop reason, progress, jitter 0..1; $11 configurations of these runs; $12 longest back-off in seconds.
--
-- The next status follows from the row as it stands now (a cancel that committed first wins) and from its
-- configuration as it stands now. A Continuous one is locked FOR SHARE, so that an UPDATE of WaitInSeconds is
-- either visible here or sees the row that starts to wait at this moment. The others are only read: an operator
-- who keeps such a configuration locked holds up no outcome.
-- A run that the database went away under goes back on the queue ten times (Interruptions) and then counts as failed.
-- Rows are looked up one by one, see claim.sql. What another session holds locked is not waited for, so that no operator's transaction can deadlock with
-- this one; the runner asks again for whatever is not returned.
with finished as materialized (
  select *
  from unnest($2::uuid[], $3::bigint[], $4::int[], $5::int[], $6::text[], $7::jsonb[], $8::text[], $9::text[], $10::float8[])
    as f (ID, ClaimID, Attempt, Verdict, Error, Result, StopReason, Progress, Jitter)
), continuous as materialized (
  select c.ID, c.Continuous, c.WaitInSeconds, c.MaxAttempts, c.RetryDelaySeconds
  from JobConfig c
  where c.ID = any($11) and c.Continuous
  for share skip locked
), config as materialized (
  select c.ID, c.Continuous, greatest(c.WaitInSeconds, 1) as WaitInSeconds, c.MaxAttempts, c.RetryDelaySeconds
  from (
    select * from continuous
    union all
    select c.ID, c.Continuous, c.WaitInSeconds, c.MaxAttempts, c.RetryDelaySeconds
    from JobConfig c
    where c.ID = any($11) and not c.Continuous) c
), owned as materialized (
  select h.ID, h.StatusID, h.ConfigID, f.Attempt, f.Error, f.Result, f.StopReason, f.Progress, f.Jitter,
    case when f.Verdict = 5 and h.Interruptions >= 10 then 1 else f.Verdict end as Verdict
  from finished f
  cross join lateral (
    select h.ID, h.StatusID, h.ConfigID, h.Interruptions
    from only JobHistory h
    where h.ID = f.ID and h.ThreadID = $1 and h.ClaimID = f.ClaimID and h.Attempt = f.Attempt and h.StatusID in (2, -1)
    for no key update skip locked) h
), next as materialized (
  select o.*, c.WaitInSeconds, c.RetryDelaySeconds, clock_timestamp() as Now,
    case
      when o.StatusID = -1 then 5
      when o.Verdict in (4, 5) then 1
      when o.Verdict = 3 then 4
      when c.Continuous then 1
      when o.Verdict = 0 then 3
      when o.Verdict = 1 and o.Attempt < c.MaxAttempts then 1
      else 4
    end as Status,
    case
      when o.StatusID = -1 or o.Verdict in (3, 4, 5) then false
      when o.Verdict = 1 and o.Attempt < c.MaxAttempts then false
      else c.Continuous
    end as IterationEnds
  from owned o
  join config c on c.ID = o.ConfigID
), settled as (
  update only JobHistory h
  set StatusID = n.Status,
      Attempt = case when n.Status <> 1 then h.Attempt when n.Verdict in (4, 5) then h.Attempt - 1
                     when n.IterationEnds then 0 else h.Attempt end,
      CurrentIteration = h.CurrentIteration + n.IterationEnds::int,
      Crashes = case when n.IterationEnds then 0 else h.Crashes end,
      Interruptions = case when n.IterationEnds then 0 else h.Interruptions + (n.Verdict = 5)::int end,
      NotBefore = case
        when n.Status <> 1 then h.NotBefore
        when n.Verdict = 4 then statement_timestamp()
        when n.Verdict = 5 then clock_timestamp() + interval '1 second' * (1 + n.Jitter * 0.25)
        when n.IterationEnds then n.Now + n.WaitInSeconds * interval '1 second'
        else clock_timestamp() + interval '1 second' * (1 + n.Jitter * 0.25)
             * least($12::float8, n.RetryDelaySeconds * 2.0 ^ least(h.Attempt - 1, 30)) end,
      WaitingSince = case when n.IterationEnds then n.Now end,
      PulseDate = clock_timestamp(),
      FinishedDate = case when n.Status <> 1 then clock_timestamp() end,
      StopReason = n.StopReason,
      Error = n.Error,
      Result = coalesce(n.Result, h.Result),
      Progress = coalesce(n.Progress, h.Progress)
  from (select * from next limit cardinality($2)) n
  where h.ID = n.ID
  returning h.ID, h.StatusID, h.ClaimID, h.NotBefore, h.WaitingSince, h.CurrentIteration
), closed as (
  update Claim k
  set Open = k.Open - s.n
  from (select s.ClaimID, count(*)::int as n from settled s group by s.ClaimID) s
  where k.ID = s.ClaimID
), forgotten as (
  -- A Continuous row may live for years: of its steps those of the last finished iteration stay.
  delete from JobEffect e using settled s
  where e.HistoryID = s.ID and s.WaitingSince is not null and e.Iteration < s.CurrentIteration - 1
), answered as (
  delete from CancelRequest r using settled s where r.HistoryID = s.ID and s.StatusID = 5
)
select s.ID as "id!", s.StatusID as "status!",
  extract(epoch from s.NotBefore - clock_timestamp())::float8 as "due_seconds!",
  s.WaitingSince is not null as "waits!"
from settled s
