-- Priorities hold between runners too.
--
-- Until now a runner whose most urgent call had Priority 1 took turns with one that had calls of Priority 9 only. Now each
-- question says the least Priority of the calls that wait in its runner, and how many have it:
--
-- | where | who goes first |
-- |---|---|
-- | with a Delay | the next window is the most urgent runner's, for so many calls as are that urgent if others have waited longer |
-- | without | slots go to the most urgent calls first, but each other runner keeps one, while there are enough |
-- | either | a runner that has waited two seconds for its turn goes before every Priority, so that none starves |
--
-- Nothing else of the function is different from 20261128000100.

alter table vm.SourceShare add column Urgency int, add column Urgent int not null default 0;
comment on column vm.SourceShare.Urgency is 'Least Priority of the calls that waited when it last asked';
comment on column vm.SourceShare.Urgent is 'How many of them had that Priority';

drop function vm.share_source(uuid, uuid, bigint, int, int, int, int, int, double precision, boolean, double precision, boolean);

-- One question of one runner about one source: what may I do from now on?
--
-- question: its number, greater than those before. in_flight, waiting: its calls in flight and those that wait. urgency,
-- urgent: the least Priority of those that wait, and how many have it. need: slots that would be used, those in flight
-- included. keeps: slots that are used whatever the answer is, no more than it has. starts: how many calls it
-- would start in the next window. slack: seconds it may be late. released: it has no window; last_start_age is the time
-- in seconds since its last start, or null if there was none. answered: the source answered calls since the last
-- question, and none with 429. starts is null: it leaves.
--
-- Answers: ok, busy (another runner asks just now: ask again), late (a newer one was answered), inactive, unknown, runner_gone. Times are in seconds
-- from now: WindowIn to WindowUntil is when it may start calls (without WindowIn: its window goes on until then), AskIn
-- when to ask for a window again.
create function vm.share_source(source_id uuid, runner_id uuid, question bigint, in_flight int, waiting int, urgency int, urgent int, need int, keeps int, starts int,
    slack double precision, released boolean, last_start_age double precision, answered boolean,
    out Verdict text, out Slots int, out Concurrency int, out DelaySeconds double precision,
    out PausedSeconds double precision, out WindowIn double precision, out WindowUntil double precision,
    out AskIn double precision, out Contended boolean, out SourceName text)
  language plpgsql volatile
  set search_path = vm, pg_catalog
as $f$
declare
  -- A window begins at most soon ahead, is at most so long, and goes on no further than the horizon, so that edits and
  -- pauses act within a second. One that begins behind that of another runner is given out late, because that runner
  -- may give back the rest of its own.
  horizon constant double precision := 0.25;
  soon constant double precision := 0.03;
  longest_alone constant double precision := 0.2;
  longest_in_turn constant double precision := 0.5;
  -- Behind an end farther ahead stands a clock that was put back: longest_in_turn and slack, or the second of a new Delay.
  farthest constant double precision := 1.1;
  -- A runner that starts one call at a time may take longer to come to its window. What it does not need it gives back.
  single constant double precision := 0.015;
  turn constant interval := '250 milliseconds';
  -- Who waited so long for a turn goes before every Priority.
  longest_wait constant interval := '2 seconds';
  first constant int := -2147483648;
  last constant int := 2147483647;
  config record;
  gate SourceGate;
  mine SourceShare;
  other record;
  now_ timestamptz;
  spacing interval;
  delay double precision;
  held int;
  granted int;
  free int;
  others_wait boolean;
  overtakes boolean := false;
  has_window boolean := false;
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
  if question <= mine.Question then
    Verdict := 'late';
    return;
  end if;
  -- What it was never given, or gave back, it cannot keep.
  keeps := greatest(in_flight, least(keeps, coalesce(mine.Slots, 0)));

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
    -- Without a Delay there is no rate to halve; with fewer calls at once there may still be too many.
    delay := case when delay > 0 then delay else 0.01 end / gate.Throttle;
    most := greatest(1, floor(most * gate.Throttle));
  end if;
  spacing := delay * interval '1 second';
  SourceName := config.Source;
  Concurrency := most;
  DelaySeconds := delay;

  -- Given back unused. Only the newest window can be: behind any other the next one has begun already.
  if released and gate.HolderID = runner_id then
    gate.WindowEnd := case when last_start_age is null then gate.Fallback
      else greatest(gate.Fallback, least(gate.WindowEnd, now_ - last_start_age * interval '1 second')) end;
    gate.HolderID := null;
    changed := true;
    if exists (select from SourceShare x where x.SourceConfigID = source_id and x.RunnerID <> runner_id and x.StartSince is not null) then
      perform pg_notify('rosterd_source', source_id || ' freed');
    end if;
  end if;
  if delay > 0 then
    -- What it started without a window: before there was a Delay, or later than it was allowed to.
    if gate.WindowEnd is null then
      gate.WindowEnd := now_ + interval '1 second';
      changed := true;
    end if;
    if last_start_age is not null and gate.WindowEnd < now_ - last_start_age * interval '1 second' then
      gate.WindowEnd := now_ - last_start_age * interval '1 second';
      changed := true;
    end if;
  elsif gate.WindowEnd is not null then
    gate.WindowEnd := null;
    gate.HolderID := null;
    changed := true;
  end if;

  if starts is null then
    -- The row stays for its number; with the runner it goes.
    update SourceShare x
      set Slots = 0, InFlight = 0, Waiting = 0, Urgency = null, Urgent = 0, Since = now_, FrontSince = null, StartSince = null, Seen = now_,
          Question = share_source.question
      where x.SourceConfigID = source_id and x.RunnerID = runner_id;
    if changed then
      update SourceGate g set WindowEnd = gate.WindowEnd, HolderID = gate.HolderID where g.SourceConfigID = source_id;
    end if;
    if exists (select from SourceShare x where x.SourceConfigID = source_id and (x.Waiting > 0 or x.StartSince is not null)) then
      perform pg_notify('rosterd_source', source_id || ' freed');
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
  free := most - held;
  Contended := false;
  if not config.Active then
    fair := 0;
    granted := keeps;
    mine.StartSince := null;
  elsif delay > 0 then
    -- A window to start calls in.
    if gate.WindowEnd > now_ + farthest * interval '1 second' then
      -- No window reaches so far: the server's clock was put back. The newest one may still run.
      gate.WindowEnd := now_ + farthest * interval '1 second';
      changed := true;
    end if;
    -- Whoever holds the others back has it told when somebody new comes.
    tell := starts > 0 and held > 0 and mine.StartSince is null
      and coalesce(mine.ToldDate < now_ - interval '1 second', true);
    mine.StartSince := case when starts > 0 then coalesce(mine.StartSince, now_) end;
    select coalesce(bool_or(x.StartSince is not null or x.Waiting > 0), false),
        coalesce(bool_or(
          (case when x.StartSince < now_ - longest_wait then first else coalesce(x.Urgency, last) end, x.StartSince)
          < (case when mine.StartSince < now_ - longest_wait then first else coalesce(share_source.urgency, last) end, mine.StartSince)), false),
        coalesce(bool_or(x.StartSince < mine.StartSince), false)
      into Contended, others_wait, overtakes
      from SourceShare x
      where x.SourceConfigID = source_id and x.RunnerID <> runner_id
        and x.Seen > now_ - interval '1 second' and exists (select from Runner r where r.ID = x.RunnerID);
    -- Its own window may end before the newest one begins.
    has_window := not released;
    if starts > 0 then
      -- Before others that have waited longer only those calls start that are more urgent.
      n := greatest(1, least(case when overtakes then urgent else starts end,
        floor(case when Contended then longest_in_turn else longest_alone end / delay)::int));
      begin_ := greatest(now_, gate.WindowEnd + spacing, now_ + PausedSeconds * interval '1 second');
      if gate.HolderID = runner_id and gate.WindowEnd >= now_ and not Contended and PausedSeconds = 0 then
        -- Its own window goes on, from where it begins: what it started last it knows itself.
        if n > 1 and gate.WindowEnd < now_ + horizon * interval '1 second' then
          gate.WindowEnd := gate.WindowEnd + n * spacing;
          changed := true;
          durable := true;
        end if;
        mine.StartSince := null;
        WindowUntil := extract(epoch from gate.WindowEnd - now_);
      elsif free <= (case when Contended then in_flight else 0 end) then
        -- No window without a slot for it. Whoever gives a slot back has it told.
        AskIn := 0.15;
      elsif others_wait then
        AskIn := greatest(0.02, extract(epoch from gate.WindowEnd + spacing - now_) - soon + 0.01);
      elsif begin_ > now_ + soon * interval '1 second' then
        AskIn := extract(epoch from begin_ - now_) - soon;
      else
        gate.Fallback := gate.WindowEnd;
        gate.WindowEnd := begin_ + (n - 1) * spacing
          + (slack + case when starts = 1 then single else 0 end) * interval '1 second';
        gate.HolderID := runner_id;
        if not overtakes then
          mine.StartSince := null;
        end if;
        has_window := true;
        changed := true;
        durable := true;
        WindowIn := extract(epoch from begin_ - now_);
        WindowUntil := extract(epoch from gate.WindowEnd - now_);
      end if;
    end if;
    fair := most;
    granted := case
      when not Contended then greatest(keeps, least(free, greatest(2 * need, least(4, (most + 3) / 4))))
      when has_window then greatest(keeps, least(free, need))
      else keeps end;
  elsif not others_wait then
    -- Twice what it needs, so that it need not ask for each call, and not all there is: what a runner has when it is
    -- killed is lost to the others until its lease is over.
    fair := most;
    granted := greatest(keeps, least(free, greatest(2 * need, least(4, (most + 3) / 4))));
    mine.StartSince := null;
  else
    -- First what is urgent, the lowest Priority before the others, but a slot is left to each of those. Then the rest.
    -- Among equals everybody gets what he needs as long as it is no more than his part of what is left; of what cannot
    -- be divided the longest waiter gets one. The one that has it stands at the end of the line after its turn.
    mine.StartSince := null;
    for round in 1 .. 2 loop
      remaining := most;
      fair := 0;
      select 1 + count(*) into left_ from SourceShare x
        where x.SourceConfigID = source_id and x.RunnerID <> runner_id
          and (x.InFlight > 0 or x.Waiting > 0) and exists (select from Runner r where r.ID = x.RunnerID);
      part := most / left_;
      for other in
        with runner_ as (
          select runner_id as RunnerID, need as Need, in_flight + urgent as Urgent, coalesce(urgency, last) as Urgency,
            coalesce(mine.Slots, 0) as Slots, coalesce(mine.Since, now_) as Since
          union all
          select x.RunnerID, x.InFlight + case when x.Seen > now_ - interval '2 seconds' then x.Waiting else 0 end,
            x.InFlight + case when x.Seen > now_ - interval '2 seconds' then x.Urgent else 0 end, coalesce(x.Urgency, last),
            x.Slots, x.Since
          from SourceShare x
          where x.SourceConfigID = source_id and x.RunnerID <> runner_id
            and (x.InFlight > 0 or x.Waiting > 0) and exists (select from Runner r where r.ID = x.RunnerID)
        ), demand as (
          select r.RunnerID, least(r.Need, r.Urgent) as Need, true as IsUrgent, r.Since,
            case when r.Slots = 0 and r.Since < now_ - longest_wait then first else r.Urgency end as Urgency
          from runner_ r
          union all
          select r.RunnerID, r.Need - r.Urgent, false, r.Since, last from runner_ r where r.Need > r.Urgent
        ), peers as (
          select d.*, count(*) over (partition by not d.IsUrgent, d.Urgency) as Peers,
            count(*) filter (where d.IsUrgent) over ()
              - count(*) filter (where d.IsUrgent) over (order by not d.IsUrgent, d.Urgency) as LessUrgent
          from demand d
        )
        select p.*, 1 + p.Peers - row_number() over (partition by not p.IsUrgent, p.Urgency
            order by least(p.Need, most / p.Peers + 1), p.Since desc, p.RunnerID desc) as PeersLeft
        from peers p
        order by not p.IsUrgent, p.Urgency, PeersLeft desc
      loop
        n := least(other.Need, greatest(remaining - other.LessUrgent, least(remaining, 1)) / other.PeersLeft);
        if other.RunnerID = runner_id then
          fair := fair + n;
        end if;
        remaining := remaining - n;
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
    granted := greatest(keeps, least(fair, free));
    -- Whoever has more than his part gives it up when he hears of it.
    tell := granted < fair;
  end if;
  -- What is in flight beyond its part counts until it ends, but makes no room for the next, nor does what is in flight
  -- elsewhere beyond a Concurrency that was lowered.
  Slots := least(granted, fair, greatest(0, free));
  if need = 0 or not others_wait or delay > 0 then
    mine.Since := null;
    mine.FrontSince := null;
  end if;

  if changed then
    update SourceGate g
      set WindowEnd = gate.WindowEnd, Fallback = gate.Fallback, HolderID = gate.HolderID,
          Throttle = gate.Throttle, ThrottledDate = gate.ThrottledDate
      where g.SourceConfigID = source_id;
  end if;
  tell := tell and coalesce(mine.ToldDate < now_ - interval '100 milliseconds', true);
  durable := durable or granted > coalesce(mine.Slots, 0);
  -- Fewer slots than before, and others wait for them.
  if granted < mine.Slots and exists (
      select from SourceShare x where x.SourceConfigID = source_id and x.RunnerID <> runner_id and x.Waiting > 0) then
    perform pg_notify('rosterd_source', source_id || ' freed');
  elsif tell then
    perform pg_notify('rosterd_source', source_id || ' wanted');
    mine.ToldDate := now_;
  end if;
  insert into SourceShare as x
    (SourceConfigID, RunnerID, Slots, InFlight, Waiting, Urgency, Urgent, Since, FrontSince, StartSince, Seen, ToldDate, Question)
    values (source_id, runner_id, granted, in_flight, waiting, urgency, urgent, coalesce(mine.Since, now_), mine.FrontSince,
      mine.StartSince, now_, mine.ToldDate, question)
    on conflict (SourceConfigID, RunnerID) do update
    set Slots = excluded.Slots, InFlight = excluded.InFlight, Waiting = excluded.Waiting,
        Urgency = excluded.Urgency, Urgent = excluded.Urgent, Since = excluded.Since,
        FrontSince = excluded.FrontSince, StartSince = excluded.StartSince, Seen = excluded.Seen, ToldDate = excluded.ToldDate,
        Question = excluded.Question;
  if not durable then
    -- Nothing was given out, so nothing is lost with it if the server crashes.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  Verdict := case when config.Active then 'ok' else 'inactive' end;
end $f$;
comment on function vm.share_source(uuid, uuid, bigint, int, int, int, int, int, int, int, double precision, boolean, double precision, boolean) is
  'Asks for a share of a source; called by the daemon a few times a second while it calls that source';
