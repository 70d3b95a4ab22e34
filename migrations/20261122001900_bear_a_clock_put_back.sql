-- A server whose clock is put back must not hold up the calls to its sources until the old time comes round again.
--
-- The start of the newest call stands in SourceGate by the wall clock. After a step of an hour back every call to that
-- source waited for an hour, with its row in progress. The function is otherwise as it was.
--
-- One call asks for a slot and a start. Statements of a VOLATILE function see what was committed before each
-- of them, so whatever is read below the lock is the newest.
--
-- Answers: granted (start it in WaitSeconds, never sooner), wait (ask again, not before WaitSeconds), inactive,
-- unknown, runner_gone.
create or replace function vm.take_source_slot(permit_id uuid, source_id uuid, runner_id uuid, history_id uuid,
    out Verdict text, out WaitSeconds double precision, out Concurrency int, out Delayed boolean, out SourceName text)
  language plpgsql volatile
  set search_path = vm, pg_catalog
as $f$
declare
  -- A start is given out at most this far ahead: edits and pauses act on all calls beyond it.
  horizon constant interval := '250 milliseconds';
  gate record;
  config record;
  spacing interval;
  start timestamptz;
  now_ timestamptz;
  since_ timestamptz;
  starving int;
  free int;
begin
  -- Keeps the runner from being reaped between here and the commit: the slot of a reaped runner counts for nothing.
  perform from Runner r where r.ID = runner_id for key share;
  if not found then
    Verdict := 'runner_gone';
    return;
  end if;
  select g.LastStart, g.PausedUntil into gate from SourceGate g where g.SourceConfigID = source_id for update;
  if not found then
    insert into SourceGate (SourceConfigID) select s.ID from SourceConfig s where s.ID = source_id
      on conflict do nothing;
    select g.LastStart, g.PausedUntil into gate from SourceGate g where g.SourceConfigID = source_id for update;
  end if;
  select s.Source, s.Active,
      coalesce((s.AuthInfo ->> 'Delay')::bigint, 0) as Delay,
      coalesce((s.AuthInfo ->> 'Concurrency')::int, 10) as Concurrency
    into config from SourceConfig s where s.ID = source_id;
  if not found then
    Verdict := 'unknown';
    return;
  end if;
  SourceName := config.Source;
  Concurrency := config.Concurrency;
  Delayed := config.Delay > 0;
  if not config.Active then
    Verdict := 'inactive';
    return;
  end if;

  -- Rounded up to PostgreSQL's microseconds, and a little more (10 %, at most 5 ms), because one call may
  -- take longer on its way to the source than the next.
  spacing := (ceil(config.Delay / 1000.0) + least(ceil(config.Delay / 10000.0), 5000)) * interval '1 microsecond';
  delete from SourceSlot k
    where k.SourceConfigID = source_id and not exists (select from Runner r where r.ID = k.RunnerID);
  select config.Concurrency - count(*) into free from SourceSlot k where k.SourceConfigID = source_id;
  now_ := clock_timestamp();
  select w.Since into since_ from SourceWaiter w where w.SourceConfigID = source_id and w.RunnerID = runner_id;
  select count(*) into starving from SourceWaiter w
    where w.SourceConfigID = source_id and w.RunnerID <> runner_id
      and w.Since < coalesce(since_, now_) and w.Since < now_ - interval '250 milliseconds'
      and w.Seen > now_ - interval '1 second';
  if gate.LastStart > now_ + horizon then
    -- Never given out so far ahead: the server's clock was put back. The newest call starts within the horizon.
    gate.LastStart := now_ + horizon;
    update SourceGate g set LastStart = gate.LastStart where g.SourceConfigID = source_id;
  end if;
  start := greatest(now_, gate.LastStart + spacing, gate.PausedUntil);

  if free > starving and start <= now_ + horizon and (starving = 0 or start = now_) then
    insert into SourceSlot (ID, SourceConfigID, RunnerID, HistoryID, StartDate)
      values (permit_id, source_id, runner_id, history_id, start);
    update SourceGate g set LastStart = start where g.SourceConfigID = source_id;
    if since_ is not null then
      delete from SourceWaiter w where w.SourceConfigID = source_id and w.RunnerID = runner_id;
    end if;
    Verdict := 'granted';
    WaitSeconds := greatest(0, extract(epoch from start - clock_timestamp()));
  else
    insert into SourceWaiter (SourceConfigID, RunnerID, Since, Seen) values (source_id, runner_id, now_, now_)
      on conflict (SourceConfigID, RunnerID) do update set Seen = excluded.Seen,
        Since = case when SourceWaiter.Seen < excluded.Seen - interval '1 second' then excluded.Since
                else SourceWaiter.Since end;
    Verdict := 'wait';
    WaitSeconds := greatest(0, extract(epoch from start - horizon - clock_timestamp()));
  end if;
end $f$;
