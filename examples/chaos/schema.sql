-- The checker's own tables, in a schema of their own: the truth about every row, outside the reach of jobs and daemons.
create schema chaos;

-- Every change of JobHistory, as the database saw it. The sequence orders the changes of one row, because whoever
-- changes a row holds it locked until its change is committed.
create table chaos.audit (
  seq bigint generated always as identity primary key,
  at bigint not null, -- microseconds since 1970 by the real clock, whatever vm.clock_timestamp() says
  op text not null,
  id uuid not null, config uuid not null,
  old_status int, status int,
  old_thread uuid, thread uuid,
  old_claim bigint, claim bigint,
  old_attempt int, attempt int,
  old_iteration bigint, iteration bigint,
  old_crashes int, crashes int,
  reason text, origin text, schedule uuid, due bigint,
  waiting boolean, was_waiting boolean, runner boolean not null, app text not null);

create function chaos.micros(at timestamptz) returns bigint language sql stable
  as 'select (extract(epoch from at) * 1000000)::bigint';

create function chaos.note() returns trigger language plpgsql set search_path = pg_catalog as $f$
begin
  insert into chaos.audit (at, op, id, config, old_status, status, old_thread, thread, old_claim, claim, old_attempt, attempt,
    old_iteration, iteration, old_crashes, crashes, reason, origin, schedule, due, waiting, was_waiting, runner, app)
  values (chaos.micros(pg_catalog.clock_timestamp()), tg_op, coalesce(new.ID, old.ID), coalesce(new.ConfigID, old.ConfigID),
    old.StatusID, new.StatusID, old.ThreadID, new.ThreadID, old.ClaimID, new.ClaimID, old.Attempt, new.Attempt,
    old.CurrentIteration, new.CurrentIteration, old.Crashes, new.Crashes, new.StopReason, new.Origin, new.ScheduleID,
    chaos.micros(new.DueDate), new.WaitingSince is not null, old.WaitingSince is not null,
    coalesce(current_setting('rosterd.actor', true), '') = 'runner', current_setting('application_name'));
  return null;
end $f$;
create trigger chaos_audit after insert or update or delete on vm.JobHistory
  for each row execute function chaos.note();
alter table vm.JobHistory enable always trigger chaos_audit;

-- Who was registered, and when.
create table chaos.runners (
  seq bigint generated always as identity primary key,
  at bigint not null, op text not null, id uuid not null, pid int not null);
create function chaos.note_runner() returns trigger language plpgsql set search_path = pg_catalog as $f$
begin
  insert into chaos.runners (at, op, id, pid)
  values (chaos.micros(pg_catalog.clock_timestamp()), tg_op, coalesce(new.ID, old.ID), coalesce(new.PID, old.PID));
  return null;
end $f$;
create trigger chaos_runners after insert or delete on vm.Runner for each row execute function chaos.note_runner();
alter table vm.Runner enable always trigger chaos_runners;

-- How many rows of a configuration may run at once, and when that changed.
create table chaos.limits (seq bigint generated always as identity primary key, at bigint not null, config uuid not null, most int not null);
create function chaos.note_limit() returns trigger language plpgsql set search_path = pg_catalog as $f$
begin
  insert into chaos.limits (at, config, most)
  values (chaos.micros(pg_catalog.clock_timestamp()), new.ID, new.MaxInstances);
  return null;
end $f$;
create trigger chaos_limits after insert or update of MaxInstances on vm.JobConfig
  for each row execute function chaos.note_limit();

-- Effects that jobs commit together with their completion.
create table chaos.ledger (seq bigint generated always as identity primary key, id uuid not null, runner uuid not null);

-- A wall clock that can be stepped. rosterd's functions, and its own connections, look into vm before pg_catalog.
create table chaos.clock (step interval not null);
insert into chaos.clock values ('0');
create function vm.clock_timestamp() returns timestamptz language sql volatile
  as 'select pg_catalog.clock_timestamp() + (select step from chaos.clock)';
create function vm.statement_timestamp() returns timestamptz language sql stable
  as 'select pg_catalog.statement_timestamp() + (select step from chaos.clock)';
