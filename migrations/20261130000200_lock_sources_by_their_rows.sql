-- Who changes the shares of a source held an advisory lock of it. Some poolers and distributed servers give such a lock
-- no effect, and then two runners could be given the same window. Now it is the lock of the source's row in SourceGate,
-- which every server keeps. As before it is held for one statement; who asks for a share never waits for it, and who
-- pushes a source back does.

do $do$
declare
  body text := pg_get_functiondef('vm.share_source'::regproc);
  part text[];
begin
  -- Two places of three hundred lines, which stay as they are.
  foreach part slice 1 in array array[
    array[
$old$  if not pg_try_advisory_xact_lock(hashtextextended(source_id::text, 20261122)) then
    Verdict := 'busy';
    return;
  end if;
$old$,
$new$  select * into gate from SourceGate g where g.SourceConfigID = source_id for no key update skip locked;
  if not found and exists (select from SourceGate g where g.SourceConfigID = source_id) then
    Verdict := 'busy';
    return;
  end if;
$new$],
    array[
$old$  select * into gate from SourceGate g where g.SourceConfigID = source_id;
  if not found then
    insert into SourceGate (SourceConfigID) values (source_id) returning * into gate;
  end if;
$old$,
$new$  if gate.SourceConfigID is null then
    insert into SourceGate (SourceConfigID) values (source_id) on conflict do nothing returning * into gate;
    if not found then
      Verdict := 'busy'; -- another runner was the first to ask for this source
      return;
    end if;
  end if;
$new$]]
  loop
    if strpos(body, part[1]) = 0 then
      raise exception 'vm.share_source is not what migration 20261128040000 made it; restore it and migrate again';
    end if;
    body := replace(body, part[1], part[2]);
  end loop;
  execute body;
end $do$;

-- The statement that writes the row waits for it.
create or replace function vm.push_back_source(source_id uuid, seconds double precision, halve boolean) returns void
  language sql volatile
  set search_path = vm, pg_catalog
as $f$
  insert into SourceGate as g (SourceConfigID, PausedDate, PausedUntil, ThrottledDate)
  select s.ID, clock_timestamp(), clock_timestamp() + seconds * interval '1 second',
    case when halve then clock_timestamp() end
  from SourceConfig s where s.ID = source_id
  on conflict (SourceConfigID) do update
  set PausedDate = least(g.PausedDate, excluded.PausedDate),
      PausedUntil = case when g.PausedDate <= excluded.PausedDate then greatest(g.PausedUntil, excluded.PausedUntil)
        else excluded.PausedUntil end,
      Throttle = case
        when halve and coalesce(g.PausedUntil < excluded.PausedDate, true)
          and g.ThrottledDate > excluded.PausedDate - interval '1 minute' then greatest(g.Throttle / 2, 1.0 / 64)
        else g.Throttle end,
      ThrottledDate = case
        when halve and coalesce(g.PausedUntil < excluded.PausedDate, true) then excluded.PausedDate
        else g.ThrottledDate end;
  select pg_notify('rosterd_source', source_id::text);
$f$;
