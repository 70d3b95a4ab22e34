-- Delay and Concurrency of a source, dealt out to runners in shares instead of call by call.
--
-- A runner that calls a source has a share of it: so many of its Concurrency (Slots), and, where it has a Delay, a
-- window of time in which only this runner starts calls. What it does inside its share costs no statement. The sum of
-- all Slots never exceeds Concurrency, windows never overlap, and between the end of one runner's window and the
-- begin of the next one's lies the Delay. Within its window a runner measures the Delay itself, by one clock, from
-- the moment the bytes of a call were written to the moment those of the next are; what it could not start within
-- its window it does not start.
--
-- | SourceShare.Slots | who writes it | because |
-- |---|---|---|
-- | more  | its runner, vm.share_source | there are free ones, and no other runner waits for them |
-- | fewer | its runner, vm.share_source | others wait and it has more than its part; never fewer than calls in flight |
-- | gone  | its runner when it is idle; the death of the runner: a share counts while there is a Runner row | |
--
-- | SourceGate.NextStart | who writes it | because |
-- |---|---|---|
-- | later   | vm.share_source | a window was given out: it ends one Delay before |
-- | earlier | vm.share_source for the runner that got the newest window | it gives back what it did not use |
--
-- Whoever changes either holds the advisory lock of that source, for one statement, and never waits for it.

drop function vm.take_source_slot(uuid, uuid, uuid, uuid);
drop table vm.SourceSlot;
drop table vm.SourceWaiter;

alter table vm.SourceGate drop column LastStart;
alter table vm.SourceGate
  add column NextStart timestamptz,
  add column Fallback timestamptz,
  add column HolderID uuid,
  add column PausedDate timestamptz,
  add column Throttle double precision not null default 1
    constraint sourcegate_throttle_is_a_part_of_one check (Throttle > 0 and Throttle <= 1),
  add column ThrottledDate timestamptz;
comment on table vm.SourceGate is 'When the next window for calls to a source may begin, and until when all wait';
comment on column vm.SourceGate.NextStart is 'One Delay after the end of the newest window in which a runner starts calls';
comment on column vm.SourceGate.Fallback is 'NextStart before the newest window was given out, for the case that it is given back unused';
comment on column vm.SourceGate.HolderID is 'The runner that got the newest window';
comment on column vm.SourceGate.PausedUntil is 'The source itself asked for a pause (Retry-After, or 429)';
comment on column vm.SourceGate.PausedDate is 'When it asked for it';
comment on column vm.SourceGate.Throttle is
  'Part of the allowed rate that is used: halved whenever the source refuses calls (429) again within a minute, and given back step by step while it answers';
comment on column vm.SourceGate.ThrottledDate is 'When Throttle was last changed';

create table vm.SourceShare (
  SourceConfigID uuid not null constraint sourceshare_gate_exists references vm.SourceGate on delete cascade,
  RunnerID uuid not null,
  Slots int not null default 0,
  InFlight int not null default 0,
  Waiting int not null default 0,
  Since timestamptz not null default clock_timestamp(),
  FrontSince timestamptz,
  StartSince timestamptz,
  Seen timestamptz not null default clock_timestamp(),
  ToldDate timestamptz,
  primary key (SourceConfigID, RunnerID)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
comment on table vm.SourceShare is
  'What each runner may do with a source at the moment. It counts while the runner has a row in Runner';
comment on column vm.SourceShare.Slots is 'Calls this runner may have in flight at once; the sum over all runners is at most Concurrency';
comment on column vm.SourceShare.InFlight is 'Calls in flight when it last asked, at most half a second ago while it calls';
comment on column vm.SourceShare.Waiting is 'Calls that waited for a slot when it last asked';
comment on column vm.SourceShare.Since is 'Its place in the line of runners that want more than there is';
comment on column vm.SourceShare.FrontSince is 'Since when it has one slot more than others that wait; they take turns';
comment on column vm.SourceShare.StartSince is 'Since when it waits for a window to start calls in';
comment on column vm.SourceShare.Seen is 'When it last asked';
comment on column vm.SourceShare.ToldDate is 'When it last had the others told that it waits';

-- One question of one runner about one source: what may I do from now on?
--
-- in_flight, waiting: its calls in flight and those that wait for a slot. starts: how many calls it would start in the
-- next window. slack: seconds it may be late. released: it has no window; last_start_age is the time in seconds since its
-- last start, or null if there was none. answered: the source
-- answered calls since the last question, and none with 429. starts is null: it leaves.
--
-- Answers: ok, busy (another runner asks just now: ask again), inactive, unknown, runner_gone. Times are in seconds
-- from now: WindowIn to WindowUntil is when it may start calls (without WindowIn: its window goes on until then), AskIn
-- when to ask for a window again.
create function vm.share_source(source_id uuid, runner_id uuid, in_flight int, waiting int, starts int,
    slack double precision, released boolean, last_start_age double precision, answered boolean,
    out Verdict text, out Slots int, out Concurrency int, out DelaySeconds double precision,
    out PausedSeconds double precision, out WindowIn double precision, out WindowUntil double precision,
    out AskIn double precision, out Contended boolean, out SourceName text)
  language plpgsql volatile
  set search_path = vm, pg_catalog
as $f$
declare
  -- A window goes on or begins at most this far ahead and is at most this long, so edits and pauses act within a second.
  -- One that begins behind that of another runner is given out late, because that runner may give back the rest of its own.
  horizon constant double precision := 0.25;
  soon constant double precision := 0.03;
  longest constant double precision := 0.2;
  turn constant interval := '250 milliseconds';
  config record;
  gate SourceGate;
  mine SourceShare;
  other record;
  now_ timestamptz;
  spacing interval;
  delay double precision;
  need int := in_flight + waiting;
  held int;
  granted int;
  others_wait boolean;
  remaining int;
  left_ int;
  part int;
  fair int;
  most int;
  begin_ timestamptz;
  n int;
  changed boolean := false;
  durable boolean := false;
  tell boolean := false;
begin
  if not pg_try_advisory_xact_lock(hashtextextended(source_id::text, 20261122)) then
    Verdict := 'busy';
    return;
  end if;
  perform from Runner r where r.ID = runner_id;
  if not found then
    Verdict := 'runner_gone';
    return;
  end if;
  select s.Source, s.Active,
      coalesce((s.AuthInfo ->> 'Delay')::bigint, 0) as Delay,
      coalesce((s.AuthInfo ->> 'Concurrency')::int, 10) as Concurrency
    into config from SourceConfig s where s.ID = source_id;
  if not found then
    Verdict := 'unknown';
    return;
  end if;
  select * into gate from SourceGate g where g.SourceConfigID = source_id;
  if not found then
    insert into SourceGate (SourceConfigID) values (source_id) returning * into gate;
  end if;
  now_ := clock_timestamp();
  select * into mine from SourceShare x where x.SourceConfigID = source_id and x.RunnerID = runner_id;

  if answered and gate.Throttle < 1 and gate.ThrottledDate < now_ - interval '10 seconds' then
    gate.Throttle := least(1, gate.Throttle * 1.25);
    gate.ThrottledDate := now_;
    changed := true;
  end if;
  -- A clock that was put back ends a pause; the source will ask again.
  PausedSeconds := case when now_ >= gate.PausedDate then greatest(0, extract(epoch from gate.PausedUntil - now_)) else 0 end;
  PausedSeconds := coalesce(PausedSeconds, 0);
  delay := ceil(config.Delay / 1000.0) / 1e6;
  most := config.Concurrency;
  if gate.Throttle < 1 then
    delay := greatest(delay, 0.01) / gate.Throttle;
    most := greatest(1, floor(most * gate.Throttle));
  end if;
  spacing := delay * interval '1 second';
  SourceName := config.Source;
  Concurrency := most;
  DelaySeconds := delay;

  -- Given back unused. Only the newest window can be: behind any other the next one has begun already.
  if released and gate.HolderID = runner_id then
    gate.NextStart := case when last_start_age is null then gate.Fallback
      else greatest(gate.Fallback, least(gate.NextStart, now_ + (delay - last_start_age) * interval '1 second')) end;
    gate.HolderID := null;
    changed := true;
    if exists (select from SourceShare x where x.SourceConfigID = source_id and x.RunnerID <> runner_id and x.StartSince is not null) then
      perform pg_notify('rosterd_source', source_id::text);
    end if;
  end if;

  if starts is null then
    delete from SourceShare x where x.SourceConfigID = source_id and x.RunnerID = runner_id;
    if changed then
      update SourceGate g set NextStart = gate.NextStart, HolderID = null where g.SourceConfigID = source_id;
    end if;
    if exists (select from SourceShare x where x.SourceConfigID = source_id and (x.Waiting > 0 or x.StartSince is not null)) then
      perform pg_notify('rosterd_source', source_id::text);
    end if;
    perform set_config('synchronous_commit', 'off', true);
    Verdict := 'ok';
    Slots := 0;
    return;
  end if;

  select coalesce(sum(x.Slots), 0), coalesce(bool_or(x.Waiting > 0 and x.Seen > now_ - interval '2 seconds'), false)
    into held, others_wait
    from SourceShare x
    where x.SourceConfigID = source_id and x.RunnerID <> runner_id
      and exists (select from Runner r where r.ID = x.RunnerID);
  if not config.Active then
    fair := 0;
    granted := in_flight;
  elsif not others_wait then
    -- Twice what it needs, so that it need not ask for each call, and not all there is: what a runner has when it is
    -- killed is lost to the others until its lease is over.
    fair := most;
    granted := greatest(in_flight, least(most - held, greatest(2 * need, least(4, (most + 3) / 4))));
  else
    -- Everybody gets what he needs as long as it is no more than his part of what is left; of what cannot be divided
    -- the longest waiter gets one. The one that has it stands at the end of the line after its turn.
    for round in 1 .. 2 loop
      remaining := most;
      select 1 + count(*) into left_ from SourceShare x
        where x.SourceConfigID = source_id and x.RunnerID <> runner_id
          and (x.InFlight > 0 or x.Waiting > 0) and exists (select from Runner r where r.ID = x.RunnerID);
      part := most / left_;
      for other in
        select * from (
          select runner_id as RunnerID, need as Need, coalesce(mine.Since, now_) as Since
          union all
          select x.RunnerID, x.InFlight + case when x.Seen > now_ - interval '2 seconds' then x.Waiting else 0 end, x.Since
          from SourceShare x
          where x.SourceConfigID = source_id and x.RunnerID <> runner_id
            and (x.InFlight > 0 or x.Waiting > 0) and exists (select from Runner r where r.ID = x.RunnerID)) d
        order by least(d.Need, most / left_ + 1), d.Since desc, d.RunnerID desc
      loop
        n := least(other.Need, remaining / left_);
        if other.RunnerID = runner_id then
          fair := n;
        end if;
        remaining := remaining - n;
        left_ := left_ - 1;
      end loop;
      exit when fair <= part or fair >= need;
      if mine.FrontSince is null then
        mine.FrontSince := now_;
        changed := true;
        exit;
      end if;
      exit when now_ < mine.FrontSince + turn or round = 2;
      mine.Since := now_;
      mine.FrontSince := null;
    end loop;
    granted := greatest(in_flight, least(fair, most - held));
    -- Whoever has more than his part gives it up when he hears of it.
    tell := granted < fair;
  end if;
  -- What is in flight beyond its part counts until it ends, but makes no room for the next.
  Slots := least(granted, fair);
  if need = 0 or not others_wait then
    mine.Since := null;
    mine.FrontSince := null;
  end if;

  -- A window to start calls in.
  Contended := false;
  if starts > 0 and delay > 0 and granted > 0 and config.Active then
    begin_ := now_ + (horizon + longest + 0.1) * interval '1 second' + spacing;
    if gate.NextStart > begin_ + interval '100 milliseconds' then
      -- No window reaches so far: the server's clock was put back, or the Delay was made shorter. The newest one may
      -- still run.
      gate.NextStart := begin_;
      changed := true;
    end if;
    mine.StartSince := coalesce(mine.StartSince, now_);
    select coalesce(bool_or(true), false), coalesce(bool_or(x.StartSince < mine.StartSince), false)
      into Contended, others_wait
      from SourceShare x
      where x.SourceConfigID = source_id and x.RunnerID <> runner_id and x.StartSince is not null
        and x.Seen > now_ - interval '1 second' and exists (select from Runner r where r.ID = x.RunnerID);
    n := greatest(1, least(starts, floor(longest / delay)::int));
    begin_ := greatest(now_, gate.NextStart, now_ + PausedSeconds * interval '1 second');
    if others_wait then
      AskIn := greatest(0.02, extract(epoch from gate.NextStart - now_) - soon + 0.01);
    elsif gate.HolderID = runner_id and gate.NextStart - spacing >= now_ and not Contended and PausedSeconds = 0 then
      -- Its own window goes on, from where it begins: what it started last it knows itself.
      if n > 1 and gate.NextStart < now_ + horizon * interval '1 second' + spacing then
        gate.NextStart := gate.NextStart + n * spacing;
        changed := true;
        durable := true;
      end if;
      mine.StartSince := null;
      WindowUntil := extract(epoch from gate.NextStart - spacing - now_);
    elsif begin_ > now_ + soon * interval '1 second' then
      AskIn := extract(epoch from begin_ - now_) - soon;
    else
      gate.Fallback := gate.NextStart;
      gate.NextStart := begin_ + n * spacing + slack * interval '1 second';
      gate.HolderID := runner_id;
      mine.StartSince := null;
      changed := true;
      durable := true;
      WindowIn := extract(epoch from begin_ - now_);
      WindowUntil := extract(epoch from gate.NextStart - spacing - now_);
    end if;
  else
    mine.StartSince := null;
  end if;

  if changed then
    update SourceGate g
      set NextStart = gate.NextStart, Fallback = gate.Fallback, HolderID = gate.HolderID,
          Throttle = gate.Throttle, ThrottledDate = gate.ThrottledDate
      where g.SourceConfigID = source_id;
  end if;
  tell := tell and coalesce(mine.ToldDate < now_ - interval '100 milliseconds', true);
  if mine.RunnerID is null or mine.Slots <> granted or changed
     or (held > 0 and mine.Seen < now_ - interval '200 milliseconds')
     or ((mine.InFlight, mine.Waiting) is distinct from (in_flight, waiting)
         and (mine.Seen < now_ - interval '400 milliseconds' or (mine.Waiting > 0) <> (waiting > 0)))
     or mine.StartSince is not null or tell then
    durable := durable or granted > coalesce(mine.Slots, 0);
    -- Fewer slots than before, and others wait for them.
    if granted < mine.Slots and exists (
        select from SourceShare x where x.SourceConfigID = source_id and x.RunnerID <> runner_id and x.Waiting > 0) then
      perform pg_notify('rosterd_source', source_id::text);
    elsif tell then
      perform pg_notify('rosterd_source', source_id::text);
      mine.ToldDate := now_;
    end if;
    insert into SourceShare as x
      (SourceConfigID, RunnerID, Slots, InFlight, Waiting, Since, FrontSince, StartSince, Seen, ToldDate)
      values (source_id, runner_id, granted, in_flight, waiting, coalesce(mine.Since, now_), mine.FrontSince,
        mine.StartSince, now_, mine.ToldDate)
      on conflict (SourceConfigID, RunnerID) do update
      set Slots = excluded.Slots, InFlight = excluded.InFlight, Waiting = excluded.Waiting, Since = excluded.Since,
          FrontSince = excluded.FrontSince, StartSince = excluded.StartSince, Seen = excluded.Seen, ToldDate = excluded.ToldDate;
    if not durable then
      -- Nothing was given out, so nothing is lost with it if the server crashes.
      perform set_config('synchronous_commit', 'off', true);
    end if;
  end if;
  Verdict := case when config.Active then 'ok' else 'inactive' end;
end $f$;
comment on function vm.share_source(uuid, uuid, int, int, int, double precision, boolean, double precision, boolean) is
  'Asks for a share of a source; called by the daemon a few times a second while it calls that source';

-- A source refused a call: no runner starts another one for so many seconds. With halve, a second refusal within a
-- minute halves the rate. Refusals that arrive while all wait already count once.
create function vm.push_back_source(source_id uuid, seconds double precision, halve boolean) returns void
  language sql volatile
  set search_path = vm, pg_catalog
as $f$
  insert into SourceGate as g (SourceConfigID, PausedDate, PausedUntil, ThrottledDate)
  select s.ID, clock_timestamp(), clock_timestamp() + seconds * interval '1 second',
    case when halve then clock_timestamp() end
  from SourceConfig s where s.ID = source_id
  on conflict (SourceConfigID) do update
  set PausedDate = least(g.PausedDate, excluded.PausedDate), PausedUntil = greatest(g.PausedUntil, excluded.PausedUntil),
      Throttle = case
        when halve and coalesce(g.PausedUntil < excluded.PausedDate, true)
          and g.ThrottledDate > excluded.PausedDate - interval '1 minute' then greatest(g.Throttle / 2, 1.0 / 64)
        else g.Throttle end,
      ThrottledDate = case
        when halve and coalesce(g.PausedUntil < excluded.PausedDate, true) then excluded.PausedDate
        else g.ThrottledDate end;
  select pg_notify('rosterd_source', source_id::text);
$f$;
comment on function vm.push_back_source(uuid, double precision, boolean) is
  'Pauses a source for all runners; called by the daemon when the source refuses calls (429, or 503 with Retry-After)';

-- Running jobs hear of an edit at once, not at their next question.
create function vm.tell_source_edited() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  perform pg_notify('rosterd_source', new.ID::text);
  return null;
end $f$;
create trigger sourceconfig_tell after update on vm.SourceConfig
  for each row execute function vm.tell_source_edited();

-- A job that needs a paused source does not start: it would hold a worker and wait.
create or replace view vm.ClaimableConfig as
select c.ID, c.JobID, c.MaxInstances
from vm.JobConfig c
join vm.Organization o on o.ID = c.OrganizationID
where c.Active and o.Active
  and not exists (
    select from vm.SourceConfig s
    where not s.Active and s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID))
  and not exists (
    select from vm.JobConfigSource x join vm.SourceConfig s on s.ID = x.SourceConfigID
    where x.ConfigID = c.ID and not s.Active)
  and not exists (
    select from vm.SourceGate g
    where g.PausedUntil > statement_timestamp() and g.PausedDate <= statement_timestamp()
      and (g.SourceConfigID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
        or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = g.SourceConfigID)));
comment on view vm.ClaimableConfig is
  'Configurations whose rows may start: the configuration, its organization and all its sources are active, and no source asked for a pause';
-- Few sources are paused at any time, and nearly none ever were.
create index sourcegate_paused on vm.SourceGate (PausedUntil) where PausedUntil is not null;

create or replace view vm.JobHistoryWaiting as
with alive as materialized (
  select r.Jobs, r.Draining or r.State <> 'running' as Draining,
    r.Workers - coalesce((select sum(k.Open) from vm.Claim k where k.RunnerID = r.ID), 0) as Free
  from vm.Runner r
  where r.AloneID is null and r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second'
), running as materialized (
  select k.ConfigID, sum(k.Open) as n from vm.Claim k group by k.ConfigID
)
select h.ID,
  case
    when not c.Active then 'config inactive'
    when not o.Active then format('organization %s inactive', o.Code)
    when inactive.Source is not null then format('source paused: %s is inactive', inactive.Source)
    when h.NotBefore > clock_timestamp() then
      case when h.WaitingSince is not null then 'not due: waits between iterations'
           when h.Attempt > 0 then format('not due: waits to retry after attempt %s', h.Attempt)
           else 'not due' end
    when paused.Source is not null then format('source paused: %s asked for a pause', paused.Source)
    when not exists (select from alive) then 'no runner alive'
    when not exists (select from alive a where h.JobID = any(a.Jobs)) then format('no runner knows the job %s', j.Struct)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining) then 'runners draining'
    when c.MaxInstances > 0 and coalesce(r.n, 0) >= c.MaxInstances then
      format('at MaxInstances %s/%s', r.n, c.MaxInstances)
    -- Needs no free worker, so it is never said to wait for one.
    when h.Crashes >= 2 then format('runs alone, because runners died under it %s times', h.Crashes)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining and a.Free > 0) then
      'all workers busy'
    else 'about to start'
  end as Reason,
  case when c.Active and o.Active and inactive.Source is null then
    case when h.NotBefore > clock_timestamp() then h.NotBefore else paused.Until end end as Until,
  j.Struct, h.ConfigID, h.OrganizationID, h.Priority, h.NotBefore
from vm.JobHistory h
join vm.JobConfig c on c.ID = h.ConfigID
join vm.Job j on j.ID = h.JobID
join vm.Organization o on o.ID = h.OrganizationID
left join running r on r.ConfigID = h.ConfigID
left join lateral (
  select s.Source from vm.SourceConfig s
  where not s.Active and (s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
    or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = s.ID))
  limit 1) inactive on true
left join lateral (
  select s.Source, g.PausedUntil as Until
  from vm.SourceGate g join vm.SourceConfig s on s.ID = g.SourceConfigID
  where g.PausedUntil > clock_timestamp() and g.PausedDate <= clock_timestamp()
    and (s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
      or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = s.ID))
  order by g.PausedUntil desc
  limit 1) paused on true
where h.Ready;
