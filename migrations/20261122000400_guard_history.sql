-- The guard: fills what an INSERT leaves out, refuses what makes no sense with a sentence that
-- says what to do instead, and turns StatusID = -1 into a cancel.
--
-- Who writes which edge of a row's life:
--
--   INSERT -> 1        anybody
--   1 -> 2             a runner (claim), Attempt + 1
--   1 -> 5, 2 -> -1    anybody, by StatusID = -1
--   2 -> 3, 4          the runner that has it
--   2 -> 1             the same (retry, wait of a Continuous row, drain), or a rescuer
--   -1 -> 5            the same, or a rescuer
--   1 -> 3, 4          a waiting Continuous row whose configuration stopped being Continuous
--
-- A connection is a runner's when it has set rosterd.actor = 'runner'. That protects against
-- mistakes, also those of a superuser in psql; the roles protect against malice.
-- The WHEN clause of the trigger lets the runner's legal edges pass without a function call.

create function vm.status_name(status int) returns text
  language sql immutable parallel safe
  return case status when -1 then 'CANCEL' when 0 then 'UNKNOWN' when 1 then 'PENDING' when 2 then 'IN PROGRESS'
    when 3 then 'COMPLETED' when 4 then 'ERROR' when 5 then 'CANCELED' else 'no status' end;

create function vm.is_runner() returns boolean
  language sql stable parallel safe
  return coalesce(current_setting('rosterd.actor', true), '') = 'runner';

create function vm.fill_job_history() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  cfg record;
  candidates int;
  problem text;
  parent_status int;
begin
  if new.StatusID is null then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_new_row_is_pending',
      message = 'JobHistory: StatusID is missing',
      hint = 'Insert with StatusID 1 to start a job.';
  elsif new.StatusID <> 1 then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_new_row_is_pending',
      message = case when new.StatusID between -1 and 5 then format('JobHistory: a new row must have StatusID 1 (PENDING), not %s (%s)', new.StatusID, status_name(new.StatusID)) else format('JobHistory: StatusID %s does not exist', new.StatusID) end,
      hint = 'Insert with StatusID 1 to start a job; rosterd writes the others itself.';
  end if;

  if new.ConfigID is null then
    if new.JobID is null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
        message = 'JobHistory: ConfigID is missing',
        hint = 'Name the configuration to run: select ID, JobID, OrganizationID from JobConfig.';
    end if;
    select count(*) into candidates from JobConfig c where c.JobID = new.JobID and c.Active;
    if candidates <> 1 then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
        message = format('JobHistory: ConfigID is missing, and JobID %s has %s active configurations', new.JobID, candidates),
        hint = 'Name one: select ID, OrganizationID, Payload from JobConfig where JobID = ' || new.JobID || '.';
    end if;
    select c.ID into new.ConfigID from JobConfig c where c.JobID = new.JobID and c.Active;
  end if;

  select c.JobID, c.OrganizationID, coalesce(c.PriorityOverride, j.Priority) as Priority, c.Payload, j.Struct
    into cfg
    from JobConfig c join Job j on j.ID = c.JobID
    where c.ID = new.ConfigID;
  if not found then
    raise exception using errcode = 'foreign_key_violation',
      message = format('JobHistory: JobConfig %s does not exist', new.ConfigID),
      hint = 'Choose one of: select ID, JobID, OrganizationID from JobConfig.', constraint = 'jobhistory_config_exists';
  end if;
  if new.JobID <> cfg.JobID then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to JobID %s (%s), not to %s', new.ConfigID, cfg.JobID, cfg.Struct, new.JobID),
      hint = 'Leave JobID out: it is filled from the configuration.';
  end if;
  if new.OrganizationID <> cfg.OrganizationID then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to organization %s, not to %s', new.ConfigID, cfg.OrganizationID, new.OrganizationID),
      hint = 'Leave OrganizationID out: it is filled from the configuration.';
  end if;
  new.JobID := cfg.JobID;
  new.OrganizationID := cfg.OrganizationID;
  new.Priority := coalesce(new.Priority, cfg.Priority);

  if new.Payload is null then
    new.Payload := cfg.Payload;
  else
    problem := payload_problem(new.Payload);
    if problem is not null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_payload_is_acceptable',
        message = format('JobHistory: Payload %s', problem),
        hint = format('%s wants an object; select PayloadSchema from Job where ID = %s shows its fields.', cfg.Struct, cfg.JobID);
    end if;
  end if;

  if not is_runner() then
    new.Origin := case when new.Origin = 'rerun' then 'rerun' when new.ParentJobID is not null then 'job' else 'operator' end;
    new.ScheduleID := null;
    new.DueDate := null;
    new.CreatedDate := null;
    new.CreatedBy := null;
  end if;
  new.CreatedDate := coalesce(new.CreatedDate, clock_timestamp());
  new.CreatedBy := coalesce(new.CreatedBy, session_user);
  new.NotBefore := coalesce(new.NotBefore, new.CreatedDate);
  if new.NotBefore not between '1970-01-01 00:00:00+00' and '9999-01-01 00:00:00+00' then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_notbefore_is_a_date',
      message = format('JobHistory: NotBefore is %s', new.NotBefore),
      hint = 'Give a time between the years 1970 and 9999, or leave it out to start at once.';
  end if;

  -- What only the engine writes starts empty, whatever the INSERT said.
  new.Attempt := 0;
  new.CurrentIteration := 0;
  new.Crashes := 0;
  new.ThreadID := null;
  new.ClaimID := null;
  new.PulseDate := null;
  new.StartedDate := null;
  new.FinishedDate := null;
  new.WaitingSince := null;
  new.CancelDate := null;
  new.CancelBy := null;
  new.StopReason := null;
  new.Error := null;
  new.Result := null;
  new.Progress := null;
  new.UpdatedDate := null;
  new.UpdatedBy := null;

  if new.ParentJobID is not null then
    -- FOR SHARE waits for a cancel of the parent that is being written right now, so that no child escapes it.
    select h.StatusID into parent_status from JobHistory h where h.ID = new.ParentJobID for share;
    if parent_status in (-1, 5) then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_parent_is_not_cancelled',
        message = format('JobHistory: the parent %s is cancelled', new.ParentJobID),
        hint = 'A cancelled row takes no more children; leave ParentJobID out.';
    end if;
  end if;
  return new;
end $f$;
create trigger jobhistory_fill before insert on vm.JobHistory
  for each row execute function vm.fill_job_history();

create function vm.guard_job_history() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  problem text;
  edited jsonb;
begin
  if tg_op = 'DELETE' then
    if old.StatusID in (1, 2, -1) then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_live_rows_are_not_deleted',
        message = format('JobHistory: %s is %s and cannot be deleted', old.ID, status_name(old.StatusID)),
        hint = format('Cancel it first: update JobHistory set StatusID = -1 where ID = %L;', old.ID);
    end if;
    return old;
  end if;

  if old.StatusID in (3, 4, 5) then
    if new.StatusID = -1 then
      -- Left alone, so that a bulk cancel still takes the others; counted for the one NOTICE of the statement.
      perform set_config('rosterd.left_alone',
        (coalesce(nullif(current_setting('rosterd.left_alone', true), ''), '0')::int + 1)::text, true);
      perform set_config('rosterd.left_alone_id', old.ID || ' is already finished (' || status_name(old.StatusID) || ')', true);
      return null;
    end if;
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_finished_rows_never_change',
      message = format('JobHistory: %s is finished (%s); finished rows never change', old.ID, status_name(old.StatusID)),
      hint = format('To run it again: select vm.rerun(%L);', old.ID);
  end if;

  if new.StatusID = -1 then
    if old.StatusID = -1 then
      perform set_config('rosterd.left_alone',
        (coalesce(nullif(current_setting('rosterd.left_alone', true), ''), '0')::int + 1)::text, true);
      perform set_config('rosterd.left_alone_id', old.ID || ' is already being cancelled', true);
      return null;
    end if;
    -- The stamps are ours to write. Anything else beside the cancel would be lost without a word.
    new.StatusID := old.StatusID;
    new.UpdatedDate := old.UpdatedDate;
    new.UpdatedBy := old.UpdatedBy;
    new.Ready := old.Ready;
    if new is distinct from old then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
        message = format('JobHistory: a statement that cancels %s can set nothing but StatusID', old.ID),
        hint = format('update JobHistory set StatusID = -1 where ID = %L;', old.ID);
    end if;
    new.CancelDate := clock_timestamp();
    new.CancelBy := session_user;
    new.UpdatedDate := new.CancelDate;
    new.UpdatedBy := session_user;
    if old.StatusID = 1 then
      new.StatusID := 5;
      new.FinishedDate := new.CancelDate;
      new.StopReason := case when old.StartedDate is null then 'never_started' else 'stopped_while_waiting' end;
    else
      new.StatusID := -1;
      insert into CancelRequest (HistoryID, RunnerID) values (old.ID, old.ThreadID) on conflict do nothing;
      perform pg_notify('rosterd_cancel', '');
    end if;
    return new;
  end if;

  if new.StatusID is distinct from old.StatusID then
    if new.StatusID is null or new.StatusID not between -1 and 5 then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
        message = format('JobHistory: StatusID %s does not exist', coalesce(new.StatusID::text, 'null')),
        hint = 'By hand a row can only be set to -1, which cancels it.';
    end if;
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
      message = format('JobHistory: %s cannot go from %s (%s) to %s (%s) by hand', old.ID, old.StatusID, status_name(old.StatusID), new.StatusID, status_name(new.StatusID)),
      hint = case when new.StatusID = 5 then 'To cancel it set StatusID = -1.' else format('By hand a row can only be set to -1, which cancels it; to run it again: select vm.rerun(%L).', old.ID) end;
  end if;

  if old.StatusID <> 1 then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
      message = format('JobHistory: %s is %s; only a PENDING row can be edited', old.ID, status_name(old.StatusID)),
      hint = 'Set StatusID = -1 to cancel it, and insert a new row.';
  end if;
  edited := to_jsonb(new) - '{priority,payload,notbefore,identifier,updateddate,updatedby,ready}'::text[];
  if edited is distinct from to_jsonb(old) - '{priority,payload,notbefore,identifier,updateddate,updatedby,ready}'::text[] then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
      message = format('JobHistory: of the PENDING row %s only Priority, Payload, NotBefore and Identifier can be edited', old.ID),
      hint = 'Cancel it with StatusID = -1 and insert a new row.';
  end if;
  if new.Priority is null or new.NotBefore is null or new.Payload is null then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_moves_are_legal',
      message = format('JobHistory: Priority, Payload and NotBefore of %s cannot be null', old.ID),
      hint = 'Set a value; NotBefore = now() starts it at once.';
  end if;
  problem := payload_problem(new.Payload);
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_payload_is_acceptable',
      message = format('JobHistory: Payload %s', problem);
  end if;
  if new.NotBefore not between '1970-01-01 00:00:00+00' and '9999-01-01 00:00:00+00' then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_notbefore_is_a_date',
      message = format('JobHistory: NotBefore is %s', new.NotBefore),
      hint = 'Give a time between the years 1970 and 9999; now() starts it at once.';
  end if;
  new.UpdatedDate := clock_timestamp();
  new.UpdatedBy := session_user;
  return new;
end $f$;

create trigger jobhistory_guard before update on vm.JobHistory
  for each row when (not (
    coalesce(current_setting('rosterd.actor', true), '') = 'runner'
    and new.ID = old.ID and new.ConfigID = old.ConfigID and new.CreatedDate = old.CreatedDate
    and case old.StatusID
      when 1 then (new.StatusID = 2 and new.Attempt = old.Attempt + 1)
               or (new.StatusID = 1 and new.Attempt = old.Attempt)
               or (new.StatusID in (3, 4) and new.Attempt = old.Attempt and old.WaitingSince is not null)
      when 2 then new.ThreadID is not distinct from old.ThreadID and new.Attempt = old.Attempt and new.StatusID in (2, 3, 4)
               or new.StatusID = 1 and new.Attempt <= old.Attempt
      when -1 then new.Attempt = old.Attempt and new.StatusID in (-1, 5)
      else false end))
  execute function vm.guard_job_history();
create trigger jobhistory_guard_delete before delete on vm.JobHistory
  for each row execute function vm.guard_job_history();
alter table vm.JobHistory enable always trigger jobhistory_guard;
alter table vm.JobHistory enable always trigger jobhistory_guard_delete;

create function vm.refuse_truncate() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  raise exception using errcode = 'insufficient_privilege',
    message = format('TRUNCATE of %s would lose live rows', tg_table_name),
    hint = 'Cancel live rows with StatusID = -1 and delete finished ones.';
end $f$;
create trigger jobhistory_no_truncate before truncate on vm.JobHistory
  for each statement execute function vm.refuse_truncate();
alter table vm.JobHistory enable always trigger jobhistory_no_truncate;

-- One NOTICE for a statement that met rows it had to leave alone.
create function vm.say_left_alone() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  n int := nullif(current_setting('rosterd.left_alone'), '')::int;
begin
  if n is null then
    return null; -- a statement inside this one (children) has said it already
  elsif n = 1 then
    raise notice 'JobHistory: %; it was left alone', current_setting('rosterd.left_alone_id');
  else
    raise notice 'JobHistory: % rows are finished or already being cancelled; they were left alone', n;
  end if;
  perform set_config('rosterd.left_alone', '', true);
  return null;
end $f$;
create trigger jobhistory_say_left_alone after update on vm.JobHistory
  for each statement when (coalesce(current_setting('rosterd.left_alone', true), '') <> '')
  execute function vm.say_left_alone();

-- Cancelling a parent cancels its live children, and theirs.
create function vm.cancel_children() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  update JobHistory set StatusID = -1 where ParentJobID = new.ID and StatusID in (1, 2);
  return null;
end $f$;
create trigger jobhistory_cancel_children after update on vm.JobHistory
  for each row when (old.StatusID in (1, 2) and new.StatusID in (-1, 5))
  execute function vm.cancel_children();
alter table vm.JobHistory enable always trigger jobhistory_cancel_children;

-- The wake-up hint: one NOTIFY, if an idle runner asked for it.
create function vm.send_wake_hint() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  chosen int;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    -- Under an older snapshot a slot that was used meanwhile would end the INSERT as a serialization failure.
    perform pg_notify('rosterd_wake', '');
    return null;
  end if;
  select h.Slot into chosen from WakeHint h where h.Armed limit 1 for update skip locked;
  if found then
    update WakeHint set Armed = false where Slot = chosen;
    perform pg_notify('rosterd_wake', '');
  end if;
  return null;
end $f$;
create trigger jobhistory_wake after insert on vm.JobHistory
  for each statement execute function vm.send_wake_hint();
-- NotBefore or Priority of a pending row edited by hand; the engine's own edges send no hint.
create trigger jobhistory_wake_on_edit after update of NotBefore on vm.JobHistory
  for each statement when (coalesce(current_setting('rosterd.actor', true), '') <> 'runner')
  execute function vm.send_wake_hint();

-- WaitInSeconds and Continuous act on a waiting row at once; whatever else may let rows start sends a hint.
create function vm.apply_job_config() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  actor text := coalesce(current_setting('rosterd.actor', true), '');
begin
  perform set_config('rosterd.actor', 'runner', true);
  if old.Continuous and not new.Continuous then
    update JobHistory
      set StatusID = case when Error is null then 3 else 4 end, FinishedDate = clock_timestamp(),
          StopReason = 'no_longer_continuous'
      where ConfigID = new.ID and Ready and WaitingSince is not null;
  elsif new.WaitInSeconds <> old.WaitInSeconds then
    update JobHistory
      set NotBefore = WaitingSince + greatest(new.WaitInSeconds, 1) * interval '1 second'
      where ConfigID = new.ID and Ready and WaitingSince is not null;
  end if;
  perform set_config('rosterd.actor', actor, true);
  return null;
end $f$;
create trigger jobconfig_apply after update of Continuous, WaitInSeconds on vm.JobConfig
  for each row when (old.Continuous is distinct from new.Continuous or old.WaitInSeconds is distinct from new.WaitInSeconds)
  execute function vm.apply_job_config();
create trigger jobconfig_wake after update of Active, MaxInstances, WaitInSeconds, Continuous,
    DataInSourceConfigID, DataOutSourceConfigID on vm.JobConfig
  for each statement execute function vm.send_wake_hint();
create trigger jobconfigsource_wake after update or delete on vm.JobConfigSource
  for each statement execute function vm.send_wake_hint();
create trigger organization_wake after update of Active on vm.Organization
  for each statement execute function vm.send_wake_hint();
create trigger sourceconfig_wake after update of Active on vm.SourceConfig
  for each statement execute function vm.send_wake_hint();

-- A drained runner that may claim again hears of it at once.
create function vm.hint_runner() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  perform pg_notify('rosterd_cancel', '');
  return null;
end $f$;
create trigger runner_hint after update of Draining on vm.Runner
  for each row when (old.Draining is distinct from new.Draining)
  execute function vm.hint_runner();

-- A fresh row from a finished one.
create function vm.rerun(id uuid) returns uuid
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  fresh uuid;
  was record;
begin
  select h.StatusID into was from JobHistory h where h.ID = rerun.id;
  if not found then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_pkey',
      message = format('JobHistory: there is no row %s', rerun.id),
      hint = 'select ID from JobHistory order by ID desc limit 20 lists the newest.';
  elsif was.StatusID in (1, 2, -1) then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_rerun_takes_a_finished_row',
      message = format('JobHistory: %s is %s; only a finished row can be run again', rerun.id, status_name(was.StatusID)),
      hint = 'Wait for it, or cancel it with StatusID = -1 first.';
  end if;
  insert into JobHistory (ConfigID, StatusID, Priority, Payload, Identifier, Origin)
    select h.ConfigID, 1, h.Priority, h.Payload, h.Identifier, 'rerun' from JobHistory h where h.ID = rerun.id
    returning JobHistory.ID into fresh;
  return fresh;
end $f$;
comment on function vm.rerun(uuid) is 'Puts a fresh row on the queue with the configuration, priority and payload of a finished one; returns its ID';
