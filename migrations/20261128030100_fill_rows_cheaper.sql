-- An INSERT computes about a quarter less, whether of one row or of 100,000. The rules and their sentences are as they
-- were. Most of what is left is the look-up of the configuration and its job, and the foreign key's look-up of the same.

-- The SELECT in it was a query of its own, set up and taken down for each value, and planned for each statement. A single
-- expression is put into the statement that asks for it. The bits are the same: 48 of milliseconds, the version, twelve
-- of the fraction of the millisecond (RFC 9562, method 3), the variant and 62 random ones; the last two are those of a
-- random UUID (version 4), which stands in the same places.
create or replace function vm.new_id() returns uuid
  language sql volatile parallel safe
  return overlay(gen_random_uuid()::text placing
      overlay(lpad(to_hex((date_part('epoch', clock_timestamp()) * 1000000)::bigint * 512 / 125), 15, '0')
        placing '7' from 13 for 0)
    from 1 for 18)::uuid;

-- What only the engine writes is looked at in one expression, and seldom has to be set: each assignment of a trigger
-- costs as much as that. The configuration comes in variables instead of a record, and its job's name, which
-- only refusals say, is looked up by them.
create or replace function vm.fill_job_history() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  job int;
  organization uuid;
  usual_priority int;
  usual_payload jsonb;
  candidates int;
  problem text;
  parent_status int;
begin
  if new.StatusID is distinct from 1 then
    if new.StatusID is null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_new_row_is_pending',
        message = 'JobHistory: StatusID is missing',
        hint = 'Insert with StatusID 1 to start a job.';
    end if;
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

  select c.JobID, c.OrganizationID, coalesce(c.PriorityOverride, j.Priority), c.Payload
    into job, organization, usual_priority, usual_payload
    from JobConfig c join Job j on j.ID = c.JobID
    where c.ID = new.ConfigID;
  if not found then
    raise exception using errcode = 'foreign_key_violation',
      message = format('JobHistory: JobConfig %s does not exist', new.ConfigID),
      hint = 'Choose one of: select ID, JobID, OrganizationID from JobConfig.', constraint = 'jobhistory_config_exists';
  end if;
  if new.JobID <> job then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to JobID %s (%s), not to %s', new.ConfigID, job, (select j.Struct from Job j where j.ID = job), new.JobID),
      hint = 'Leave JobID out: it is filled from the configuration.';
  end if;
  if new.OrganizationID <> organization then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to organization %s, not to %s', new.ConfigID, organization, new.OrganizationID),
      hint = 'Leave OrganizationID out: it is filled from the configuration.';
  end if;
  new.JobID := job;
  new.OrganizationID := organization;
  new.Priority := coalesce(new.Priority, usual_priority);

  if new.Payload is null then
    new.Payload := usual_payload;
  elsif new.Payload <> '{}' then
    problem := payload_problem(new.Payload);
    if problem is not null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_payload_is_acceptable',
        message = format('JobHistory: Payload %s', problem),
        hint = format('%s wants an object; select PayloadSchema from Job where ID = %s shows its fields.', (select j.Struct from Job j where j.ID = job), job);
    end if;
  end if;

  if is_runner() then
    new.CreatedDate := coalesce(new.CreatedDate, clock_timestamp());
    new.CreatedBy := coalesce(new.CreatedBy, session_user);
  else
    new.Origin := case when new.Origin = 'rerun' then 'rerun' when new.ParentJobID is not null then 'job' else 'operator' end;
    new.CreatedDate := clock_timestamp();
    new.CreatedBy := session_user;
    if new.ScheduleID is not null or new.DueDate is not null then
      new.ScheduleID := null;
      new.DueDate := null;
    end if;
  end if;
  if new.NotBefore is null then
    new.NotBefore := new.CreatedDate;
  elsif new.NotBefore not between '1970-01-01 00:00:00+00' and '9999-01-01 00:00:00+00' then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_notbefore_is_a_date',
      message = format('JobHistory: NotBefore is %s', new.NotBefore),
      hint = 'Give a time between the years 1970 and 9999, or leave it out to start at once.';
  end if;

  -- What only the engine writes starts empty, whatever the INSERT said.
  if (new.Attempt = 0 and new.CurrentIteration = 0 and new.Crashes = 0) is not true
    or num_nonnulls(new.ThreadID, new.ClaimID, new.PulseDate, new.StartedDate, new.FinishedDate, new.WaitingSince,
      new.CancelDate, new.CancelBy, new.StopReason, new.Error, new.Result, new.Progress, new.UpdatedDate, new.UpdatedBy) > 0
  then
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
  end if;

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
